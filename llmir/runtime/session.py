"""One artifact on one device: mapped weights, KV pools, and `step`.

Shape legend as in runtime.base.  Satisfies `StepRunner`.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import iree.runtime as rt
import numpy as np
from numpy.typing import NDArray

from llmir.artifact import Artifact, KvLayout, ModuleEntry
from llmir.config import TOP_K
from llmir.errors import DeviceError
from llmir.runtime.base import F32, I32, StepBatch, StepLimits, TopLogits
from llmir.runtime.choice import choose
from llmir.runtime.devices import IREE_ERRORS, facts_of, open_device
from llmir.runtime.memory import MemoryUse, is_out_of_memory, plan
from llmir.runtime.transfer import ELEMENT_TYPES, Timeline, Transfers
from llmir.runtime.waiting import polite_wait

PARAMETER_SCOPE = "model"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOptions:
    """How to run an artifact.

    device:                  a device URI; None: the best, see runtime.choice
    kv_cache_bytes:          memory for the KV pools; None is 1 GiB, or less if less is free or
                             can ever be used
    device_memory_fraction:  in its place, the share of the device's memory that weights, steps
                             and KV pools may take together
    num_threads:             CPU worker threads; None is one per physical core
    """

    device: str | None = None
    kv_cache_bytes: int | None = None
    device_memory_fraction: float | None = None
    num_threads: int | None = None


class Session:
    """A StepRunner on an IREE device.  Not thread-safe: one step at a time.

    Raises: ArtifactTargetError if no module runs on this machine or the device asked
    for; DeviceError if the device is not there; DeviceMemoryError if it has too little memory;
    OptionError for a KV budget too small.
    """

    def __init__(self, artifact: Artifact, options: SessionOptions = SessionOptions()) -> None:
        self.artifact = artifact
        self.module, self.device_uri = choose(artifact, options.device)
        self.device = open_device(self.device_uri, options.num_threads)
        manifest = artifact.manifest
        pages, self._memory = plan(
            artifact,
            self.module,
            self.device_uri,
            options.kv_cache_bytes,
            options.device_memory_fraction,
        )
        num_pages = (pages,) * len(manifest.kv.group_windows)
        self._limits = StepLimits(
            page_size=manifest.kv.page_size,
            num_pages=num_pages,
            group_windows=manifest.kv.group_windows,
            max_model_len=manifest.limits.max_model_len,
            max_num_batched_tokens=manifest.limits.max_num_batched_tokens,
            max_num_seqs=manifest.limits.max_num_seqs,
            vocab_size=manifest.model.vocab_size,
        )
        self._timeline = Timeline(self.device)
        is_cpu = self.module.driver.startswith("local")
        self._wait = polite_wait if is_cpu else nullcontext
        self._transfers = Transfers(self.device, self._timeline, is_cpu=is_cpu)
        self._context, self._functions = _load(artifact, self.module, self.device, self._memory)
        try:
            self._kv = [
                _kv_pool(self.device, manifest.kv, pages) for _ in manifest.kv.group_of_layer
            ]
        except IREE_ERRORS as error:
            raise self._device_error("the KV pages", "cannot allocate", error) from error

    @property
    def limits(self) -> StepLimits:
        return self._limits

    @property
    def top_k(self) -> int:
        """See StepRunner.top_k; 0 on a software device, whose rows of logits are in host memory."""
        if "step_topk" not in self._functions or self._is_software:
            return 0
        return min(TOP_K, self._limits.vocab_size)

    @property
    def _is_software(self) -> bool:
        """Whether a driver for GPUs runs on the CPU: it searches a row slower than the host."""
        is_cpu = self.module.driver.startswith("local")
        return not is_cpu and facts_of(self.device_uri).kind == "cpu"

    @property
    def kv_bytes(self) -> int:
        """Bytes of all KV pools."""
        return self._memory.kv

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
        arrays = (
            batch.token_ids,
            batch.positions,
            batch.token_seq,
            batch.query_start,
            batch.context_len,
            batch.page_table,
            batch.slots,
            rows,
        )
        arguments = rt.VmVariantList(len(arrays) + len(self._kv) + 2)
        results = rt.VmVariantList(len(dtypes))
        try:
            for view in self._transfers.send([np.asarray(a, np.int32) for a in arrays]):
                arguments.push_ref(view)
            for pool in self._kv:
                arguments.push_ref(pool)
            for fence in self._timeline.next():
                arguments.push_ref(fence)
            with self._wait():
                self._context.invoke(function, arguments, results)  # returns when all is queued
                views = [results.get_as_object(i, rt.HalBufferView) for i in range(len(dtypes))]
                found = self._transfers.fetch(views, dtypes)
        except IREE_ERRORS as error:
            self._timeline.restart()
            what = f"a step of {len(batch.token_ids)} tokens"
            raise self._device_error(what, f"failed on {self.module.target}:", error) from error
        return [array[:wanted] for array in found]

    def _device_error(self, what: str, failed: str, error: Exception) -> DeviceError:
        """What to raise for an error of IREE's: one that says what memory went to, or not."""
        if is_out_of_memory(error):
            return self._memory.error(what, error)
        return DeviceError(f"{what} {failed} {error}")


def _load(
    artifact: Artifact, module: ModuleEntry, device: rt.HalDevice, memory: MemoryUse
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
        if is_out_of_memory(error):
            raise memory.error("the weights", error) from error
        raise DeviceError(f"cannot load {module.file} on {memory.device}: {error}") from error
    # Each entry point has an asynchronous form, which takes a fence to wait for and one to signal.
    return context, {name: code.lookup_function(f"{name}$async") for name in module.entry_points}


def _kv_pool(device: rt.HalDevice, kv: KvLayout, num_pages: int) -> rt.HalBufferView:
    """A layer's pages, uninitialised: the lowerings never read a slot that was not written."""
    buffer = device.allocator.allocate_buffer(
        memory_type=rt.MemoryType.DEVICE_LOCAL,
        allowed_usage=rt.BufferUsage.DEFAULT,
        allocation_size=num_pages * kv.page_bytes,
    )
    shape = (num_pages, *kv.page_shape)
    return rt.HalBufferView(buffer, shape, int(ELEMENT_TYPES[kv.element]))
