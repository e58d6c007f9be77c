"""One artifact on one device: mapped weights, KV pools, and `step`.

Shape legend as in runtime.base.  Satisfies `StepRunner`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import iree.runtime as rt
import numpy as np
from numpy.typing import NDArray

from llmir.artifact import Artifact, KvLayout, ModuleEntry
from llmir.config import TOP_K
from llmir.cpu_levels import level_within, rank
from llmir.errors import ArtifactTargetError, DeviceError, OptionError
from llmir.host import available_bytes, host_cpu, missing_here
from llmir.runtime.base import F32, I32, StepBatch, StepLimits, TopLogits
from llmir.runtime.devices import IREE_ERRORS, devices_of, open_device, positive
from llmir.runtime.transfer import ELEMENT_TYPES, to_device, to_host
from llmir.runtime.waiting import polite_wait
from llmir.targets import kind_of_device

PARAMETER_SCOPE = "model"
DEFAULT_KV_BYTES = 1 << 30
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOptions:
    """How to run an artifact.

    device:           a device URI; None takes the module that `choose_module` says
    kv_cache_bytes:   memory for the KV pools; None is 1 GiB, or less if less is free or
                      can ever be used
    num_threads:      CPU worker threads; None is one per physical core
    """

    device: str | None = None
    kv_cache_bytes: int | None = None
    num_threads: int | None = None


class Session:
    """A StepRunner on an IREE device.  Not thread-safe: one step at a time.

    Raises: ArtifactTargetError if no module runs on this machine or the device asked
    for; DeviceError if the device is not there; OptionError for a KV budget too small.
    """

    def __init__(self, artifact: Artifact, options: SessionOptions = SessionOptions()) -> None:
        self.artifact = artifact
        self.module = choose_module(artifact, options.device)
        uri = options.device or self.module.driver
        self.device = open_device(uri, options.num_threads)
        manifest = artifact.manifest
        num_pages = _num_pages(artifact, options.kv_cache_bytes)
        self._limits = StepLimits(
            page_size=manifest.kv.page_size,
            num_pages=num_pages,
            group_windows=manifest.kv.group_windows,
            max_model_len=manifest.limits.max_model_len,
            max_num_batched_tokens=manifest.limits.max_num_batched_tokens,
            max_num_seqs=manifest.limits.max_num_seqs,
            vocab_size=manifest.model.vocab_size,
        )
        self._wait = polite_wait if self.module.driver == "local-task" else nullcontext
        self._context, self._functions = _load(artifact, self.module, self.device)
        self._kv = [
            _kv_pool(self.device, manifest.kv, num_pages[group])
            for group in manifest.kv.group_of_layer
        ]

    @property
    def limits(self) -> StepLimits:
        return self._limits

    @property
    def top_k(self) -> int:
        """See StepRunner.top_k."""
        return min(TOP_K, self._limits.vocab_size) if "step_topk" in self._functions else 0

    @property
    def kv_bytes(self) -> int:
        """Bytes of all KV pools."""
        kv = self.artifact.manifest.kv
        return sum(self._limits.num_pages[group] * kv.page_bytes for group in kv.group_of_layer)

    def zero_kv(self, num_pages: int) -> None:
        """Write zeros to the first pages of every layer, on a CPU: for measurements only.

        Memory that nobody has written is one page of the kernel's, which caches hold.
        """
        num_bytes = num_pages * self.artifact.manifest.kv.page_bytes
        try:
            for pool in self._kv:
                pool.get_buffer().fill_zero(0, num_bytes)
        except IREE_ERRORS as error:
            raise DeviceError(
                f"cannot write the KV pages of {self.module.target}: {error}"
            ) from error

    def step(self, batch: StepBatch) -> F32:
        """See StepRunner.step."""
        (logits,) = self._invoke(self._functions["step"], batch, np.float32)
        return logits

    def step_greedy(self, batch: StepBatch) -> I32:
        """See StepRunner.step_greedy."""
        if "step_greedy" not in self._functions:  # an artifact from before there was one
            logits = self.step(batch)
            best = logits.argmax(axis=1)
            finite = np.isfinite(logits[np.arange(len(best)), best])
            return np.where(finite, best, -1).astype(np.int32)
        (token_ids,) = self._invoke(self._functions["step_greedy"], batch, np.int32)
        return token_ids

    def step_topk(self, batch: StepBatch) -> TopLogits:
        """See StepRunner.step_topk."""
        types = (np.float32, np.int32, np.float32)
        values, token_ids, weights = self._invoke(self._functions["step_topk"], batch, *types)
        return TopLogits(values=values, token_ids=token_ids, weights=weights)

    def _invoke(
        self, function: rt.VmFunction, batch: StepBatch, *dtypes: type[np.generic]
    ) -> list[NDArray[Any]]:
        """What a step returns, of these types and L rows each."""
        wanted = len(batch.logit_rows)
        # The module computes at least one row; nobody sees it if none was wanted.
        rows = batch.logit_rows if wanted else np.zeros(1, np.int32)
        arguments = rt.VmVariantList(8 + len(self._kv))
        for array in (
            batch.token_ids,
            batch.positions,
            batch.token_seq,
            batch.query_start,
            batch.context_len,
            batch.page_table,
            batch.slots,
            rows,
        ):
            arguments.push_ref(to_device(self.device, np.asarray(array, np.int32)))
        for pool in self._kv:
            arguments.push_ref(pool)
        results = rt.VmVariantList(len(dtypes))
        try:
            with self._wait():
                self._context.invoke(function, arguments, results)
            found = [
                to_host(self.device, results.get_as_object(i, rt.HalBufferView), dtype)
                for i, dtype in enumerate(dtypes)
            ]
        except IREE_ERRORS as error:
            raise DeviceError(
                f"a step of {len(batch.token_ids)} tokens failed on {self.module.target}: {error}"
            ) from error
        return [array[:wanted] for array in found]


def choose_module(artifact: Artifact, device: str | None) -> ModuleEntry:
    """The module for a device, or for the first of the artifact's drivers with one here.

    Of CPU modules, the one for the best CPU that this machine comes up to.  For one that
    uses AMX the kernel is asked, for the whole process.
    Raises ArtifactTargetError: says which targets there are, and what is missing here.
    """
    entries = artifact.manifest.modules
    if device is not None:
        kind = kind_of_device(device)
        entries = tuple(m for m in entries if m.target.partition(":")[0] == kind)
        if not entries:
            there = ", ".join(m.target for m in artifact.manifest.modules)
            raise ArtifactTargetError(
                f"{artifact.path} has no module for device {device!r}; it has: {there}. "
                f"Compile the model with target {kind!r} as well"
            )
    refused = []
    for entry in _best_first(entries):
        missing = missing_here(entry.cpu_arch, entry.cpu_features) if entry.cpu_arch else []
        if missing:
            refused.append(f"{entry.target} needs {', '.join(missing)}")
        elif device is not None or devices_of(entry.driver):
            return entry
        else:
            refused.append(f"{entry.target} needs a device of the driver {entry.driver}")
    oldest = "aarch64" if host_cpu().arch == "aarch64" else "x86-64-v3"
    raise ArtifactTargetError(
        f"no module of {artifact.path} runs on this machine: {'; '.join(refused)}. "
        f"Compile the model here, or for an older CPU (target cpu:{oldest})"
    )


def _best_first(entries: Sequence[ModuleEntry]) -> list[ModuleEntry]:
    """Drivers as the artifact has them; of one, the higher ISA level, then the more features."""
    drivers = list(dict.fromkeys(entry.driver for entry in entries))

    def place(entry: ModuleEntry) -> tuple[int, int, int]:
        level = level_within(entry.cpu_arch, entry.cpu_features)
        return drivers.index(entry.driver), -rank(level), -len(set(entry.cpu_features))

    return sorted(entries, key=place)


def _load(
    artifact: Artifact, module: ModuleEntry, device: rt.HalDevice
) -> tuple[rt.VmContext, dict[str, rt.VmFunction]]:
    instance = rt.VmInstance()
    index = rt.ParameterIndex()
    hal = rt.create_hal_module(instance, device)
    try:
        index.load(str(artifact.file(module.weights)), mmap=True)
        provider = index.create_provider(PARAMETER_SCOPE)
        parameters = rt.create_io_parameters_module(instance, provider)
        code = rt.VmModule.mmap(instance, str(artifact.file(module.file)))
        context = rt.VmContext(instance, [hal, parameters, code])
    except IREE_ERRORS as error:
        raise DeviceError(f"cannot load {module.file} on {module.target}: {error}") from error
    return context, {name: code.lookup_function(name) for name in module.entry_points}


def _num_pages(artifact: Artifact, budget: int | None) -> tuple[int, ...]:
    """Pages of each group's pool: as many as the budget holds, and no more than can be used.

    Every group gets the same number: a window's pages are freed as it moves, so a
    group that needs fewer simply leaves some free.
    """
    kv, limits = artifact.manifest.kv, artifact.manifest.limits
    bytes_per_page = len(kv.group_of_layer) * kv.page_bytes
    pages_per_seq = -(-limits.max_model_len // kv.page_size)
    most = limits.max_num_seqs * pages_per_seq + 1
    if budget is None:
        budget = min(DEFAULT_KV_BYTES, available_bytes() // 2)
    positive("kv_cache_memory_bytes", budget)
    pages = min(most, budget // bytes_per_page)
    least = 2
    if pages < least:
        raise OptionError(
            f"a KV cache of {budget} bytes holds {pages} pages; it needs at least {least} of "
            f"{bytes_per_page} bytes each (page 0 is kept for padding)"
        )
    if pages <= pages_per_seq:
        _log.info(
            "the KV cache holds %d tokens, fewer than one sequence of %d",
            (pages - 1) * kv.page_size,
            limits.max_model_len,
        )
    return (pages,) * len(kv.group_windows)


def _kv_pool(device: rt.HalDevice, kv: KvLayout, num_pages: int) -> rt.HalBufferView:
    """A layer's pages, uninitialised: the lowerings never read a slot that was not written."""
    buffer = device.allocator.allocate_buffer(
        memory_type=rt.MemoryType.DEVICE_LOCAL,
        allowed_usage=rt.BufferUsage.DEFAULT,
        allocation_size=num_pages * kv.page_bytes,
    )
    shape = (num_pages, *kv.page_shape)
    return rt.HalBufferView(buffer, shape, int(ELEMENT_TYPES[kv.element]))
