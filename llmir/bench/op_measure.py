"""The llm ops of a step, each measured alone: in the module that compiler.op_modules makes.

A repeat calls the function of an op, which makes CHAIN calls of it, and then that of the
links between them; the time of a call is the difference over CHAIN.

Weights and KV pages come from memory in a step, since those of all other layers pass through
the caches in between.  So each call in turn reads another copy, of COLD_BYTES together or
more: the artifact's own parameters, those of the layers in turn.  Activations stay in the
caches, as they do in a step: the op before has just written them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import iree.runtime as rt
import numpy as np
from numpy.typing import NDArray

from llmir import artifact as artifacts
from llmir.artifact import Artifact, CallOperand, ModuleEntry, StepCall
from llmir.bench.cases import Case, Sequences
from llmir.bench.measure import RunOptions, cpu_seconds, share_of_others
from llmir.bench.op_costs import size_of
from llmir.errors import DeviceError, OptionError
from llmir.runtime.base import F32, I32, StepBatch, StepLimits, TopLogits
from llmir.runtime.choice import choose_module
from llmir.runtime.devices import IREE_ERRORS, open_device

CHAIN = 16
COLD_BYTES = 1 << 27
MAX_COPIES = 512
MIN_REPEATS, MAX_REPEATS = 5, 100
SECONDS = 0.5  # of each op, if that is more repeats than MIN_REPEATS
WARM_UP_REPEATS = 1

_ELEMENTS: dict[str, tuple[Any, type[np.generic]]] = {
    "f32": (rt.HalElementType.FLOAT_32, np.float32),
    "f16": (rt.HalElementType.FLOAT_16, np.float16),
    "bf16": (rt.HalElementType.BFLOAT_16, np.uint16),
    "i32": (rt.HalElementType.SINT_32, np.int32),
    "i8": (rt.HalElementType.SINT_8, np.int8),
}
Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredOps:
    """Seconds of every repeat, of each op's function and of its links': [op][repeat].

    others_cpu_share: as in measure.Measured
    """

    call_s: list[list[float]]
    links_s: list[list[float]]
    others_cpu_share: float | None


def measure_ops(path: Path, module_file: Path, case: Case, options: RunOptions) -> MeasuredOps:
    """Measure every op of the artifact's step in the module at `module_file`.

    Raises as artifact.load, choice.choose_module and devices.open_device; DeviceError.
    """
    artifact = artifacts.load(path)
    module = choose_module(artifact, options.device)
    return measure_calls(artifact, module, module_file, case, options)


def measure_calls(
    artifact: Artifact, module: ModuleEntry, module_file: Path, case: Case, options: RunOptions
) -> MeasuredOps:
    """Measure the calls of `module`.  Raises DeviceError, and as devices.open_device."""
    device = open_device(options.device or module.driver, options.num_threads)
    operands = _Operands(artifact, module, step_batch(artifact, case), device)
    instance = rt.VmInstance()
    call_s, links_s = [], []
    before = cpu_seconds()
    try:
        hal = rt.create_hal_module(instance, device)
        code = rt.VmModule.mmap(instance, str(module_file))
        context = rt.VmContext(instance, [hal, code])
        for index, call in enumerate(module.calls):
            functions = [code.lookup_function(f"{name}_{index}") for name in ("call", "links")]
            calls, links = _measure(context, functions, operands.of(call))
            call_s.append(calls)
            links_s.append(links)
    except IREE_ERRORS as error:
        raise DeviceError(f"an op failed on {module.target}: {error}") from error
    others = share_of_others(before, cpu_seconds())
    return MeasuredOps(call_s=call_s, links_s=links_s, others_cpu_share=others)


def step_batch(artifact: Artifact, case: Case) -> StepBatch:
    """The arguments of the measured step of a case.

    Raises OptionError for a prompt that is more than one step.
    """
    manifest = artifact.manifest
    budget = manifest.limits.max_num_batched_tokens
    spans = case.spans(budget)
    if len(spans) != 1:
        raise OptionError(
            f"{case.name} is {len(spans)} steps of up to {budget} tokens, and ops are measured "
            f"in one: give a prompt length of at most {budget}"
        )
    pages = 1 + case.batch * -(-case.tokens_per_seq // manifest.kv.page_size)
    recorder = _Recorder(
        StepLimits(
            page_size=manifest.kv.page_size,
            num_pages=(pages,) * len(manifest.kv.group_windows),
            group_windows=manifest.kv.group_windows,
            max_model_len=manifest.limits.max_model_len,
            max_num_batched_tokens=budget,
            max_num_seqs=manifest.limits.max_num_seqs,
            vocab_size=manifest.model.vocab_size,
        )
    )
    seqs = Sequences(recorder, case.batch, case.tokens_per_seq)
    seqs.step(spans[0][0])
    assert recorder.last is not None
    return recorder.last


class _Recorder:
    """A StepRunner that computes nothing and remembers the last batch."""

    def __init__(self, limits: StepLimits) -> None:
        self.limits = limits
        self.last: StepBatch | None = None

    def step(self, batch: StepBatch) -> F32:
        self.last = batch
        return np.zeros((len(batch.logit_rows), self.limits.vocab_size), np.float32)

    def step_greedy(self, batch: StepBatch) -> I32:
        self.last = batch
        return np.zeros(len(batch.logit_rows), np.int32)

    @property
    def top_k(self) -> int:
        return 1

    def step_topk(self, batch: StepBatch) -> TopLogits:
        self.last = batch
        zeros = np.zeros((len(batch.logit_rows), self.top_k), np.float32)
        weights = np.full(len(zeros), self.limits.vocab_size, np.float32)
        return TopLogits(values=zeros, token_ids=zeros.astype(np.int32), weights=weights)


def sizes_of(batch: StepBatch) -> dict[str, int]:
    """The dynamic sizes that activations have in a step."""
    return {"T": len(batch.token_ids), "L": len(batch.logit_rows)}


@dataclass(frozen=True, slots=True)
class _Buffers:
    """What the functions of an op are called with, in op_modules' order.

    carrier:  the operand that orders the calls
    copies:   of the rotated operands
    """

    carrier: rt.HalBufferView
    shared: list[rt.HalBufferView]
    copies: list[list[rt.HalBufferView]]

    def arguments(self, turn: int) -> rt.VmVariantList:
        """Of the op's function: CHAIN copies from the `turn`th on, and so round."""
        found = [self.carrier, *self.shared]
        for k in range(CHAIN if self.copies else 0):
            found += self.copies[(turn + k) % len(self.copies)]
        return _variants(found)


class _Operands:
    """Makes the operands of calls on a device."""

    def __init__(
        self, artifact: Artifact, module: ModuleEntry, batch: StepBatch, device: rt.HalDevice
    ) -> None:
        self._kv = artifact.manifest.kv
        self._batch = batch
        self._sizes = sizes_of(batch)
        self._device = device
        self._rng = np.random.default_rng(0)
        self._index = rt.ParameterIndex()
        self._index.load(str(artifact.file(module.weights)), mmap=True)
        self._entries = dict(self._index.items())

    def of(self, call: StepCall) -> _Buffers:
        rotated = call.rotated
        made = {o.name: self._buffer(call, o, 0) for o in call.operands if o.name not in rotated}
        carrier = next(o for o in call.operands if o.kind != "parameter" and o.name in made)
        of_call = [o for o in call.operands if o.name in rotated]
        copies: list[list[rt.HalBufferView]] = []
        num_bytes = 0
        while of_call and num_bytes < COLD_BYTES and len(copies) < MAX_COPIES:
            copies.append([self._buffer(call, o, len(copies) % call.count) for o in of_call])
            num_bytes += sum(view.byte_length for view in copies[-1])
        first = made.pop(carrier.name)
        return _Buffers(first, [*made.values()], copies)

    def _buffer(self, call: StepCall, operand: CallOperand, occurrence: int) -> rt.HalBufferView:
        position = call.operands.index(operand)
        source = call.sources[occurrence][position]
        element, dtype = _ELEMENTS[operand.dtype]
        if operand.kind == "parameter":
            raw = np.frombuffer(self._entries[source].file_view, np.uint8)
            array = raw.view(dtype).reshape(tuple(map(int, operand.dims)))
        elif operand.name == "kv":
            array = self._pages(operand)
        elif operand.kind == "argument":
            array = self._argument(call, source, occurrence)
        else:
            shape = tuple(size_of(d, self._sizes) for d in operand.dims)
            array = self._rng.standard_normal(shape, np.float32)
        return self._put(array, element)

    def _pages(self, operand: CallOperand) -> Array:
        """Pages of a layer, filled with numbers: memory that nobody wrote is all one page."""
        num_pages = int(self._batch.page_table.max()) + 1
        shape = (num_pages, *map(int, operand.dims[1:]))
        numbers = self._rng.standard_normal(1 << 16, np.float32)
        if operand.dtype == "bf16":
            some: Array = (numbers.view(np.uint32) >> 16).astype(np.uint16)
        else:
            some = numbers.astype(_ELEMENTS[operand.dtype][1])
        return np.resize(some, shape)

    def _argument(self, call: StepCall, source: str, occurrence: int) -> I32:
        """An array of the batch; of several groups of layers, that of the call's own."""
        array: I32 = getattr(self._batch, source)
        if source not in ("page_table", "slots"):
            return array
        pages = next((s for s in call.sources[occurrence] if s.startswith("kv_")), "kv_0")
        return array[self._kv.group_of_layer[int(pages.removeprefix("kv_"))]]

    def _put(self, array: Array, element: Any) -> rt.HalBufferView:
        return self._device.allocator.allocate_buffer_copy(
            memory_type=rt.MemoryType.DEVICE_LOCAL,
            allowed_usage=rt.BufferUsage.DEFAULT | rt.BufferUsage.MAPPING,
            device=self._device,
            buffer=np.ascontiguousarray(array),
            element_type=element,
        )


def _variants(views: Sequence[rt.HalBufferView]) -> rt.VmVariantList:
    found = rt.VmVariantList(len(views))
    for view in views:
        found.push_ref(view)
    return found


def _measure(
    context: rt.VmContext, functions: Sequence[rt.VmFunction], buffers: _Buffers
) -> tuple[list[float], list[float]]:
    """Seconds of each repeat, of the op's function and of its links'."""
    call, links = functions
    call_s: list[float] = []
    links_s: list[float] = []
    turn = 0
    end = float("inf")
    while len(call_s) < MIN_REPEATS + WARM_UP_REPEATS or (
        len(call_s) < MAX_REPEATS and time.perf_counter() < end
    ):
        if len(call_s) == WARM_UP_REPEATS:
            end = time.perf_counter() + SECONDS
        call_s.append(_seconds(context, call, buffers.arguments(turn)))
        links_s.append(_seconds(context, links, _variants([buffers.carrier] * 2)))
        turn += CHAIN
    return call_s[WARM_UP_REPEATS:], links_s[WARM_UP_REPEATS:]


def _seconds(context: rt.VmContext, function: rt.VmFunction, arguments: rt.VmVariantList) -> float:
    results = rt.VmVariantList(1)
    start = time.perf_counter()
    context.invoke(function, arguments, results)
    return time.perf_counter() - start
