"""The process that runs a module's functions on a device: `python -m conformance.on_targets.worker`.

A job on stdin:

    {"device": "vulkan://0", "path": "….vmfb", "seed": 0,
     "functions": [{"name": "f0", "uses": [[draw, is_kernel, pages], …]}, …]}

For each use a line on stdout before it runs, {"begin": [function, use]}, and one after it, with
its verdict: a driver that ends the process has then named its case.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Sequence
from typing import Any

import iree.runtime as rt
import numpy as np
from conformance import cases

from llmir.dialect_ext.types import TensorType
from llmir.runtime.devices import IREE_ERRORS, open_device
from llmir.runtime.transfer import read_back

from .draw import NUMPY, Array, Draw, Sample, Verdict
from .draws import all_draws
from .program import has_storage

ELEMENTS = {
    "f32": rt.HalElementType.FLOAT_32,
    "f16": rt.HalElementType.FLOAT_16,
    "bf16": rt.HalElementType.BFLOAT_16,
    "i32": rt.HalElementType.SINT_32,
    "i8": rt.HalElementType.INT_8,
}
# How a lowering's pages are ordered: from rows, and to rows.  (pages, their dtype) → pages
PAGE_ORDERS = {
    "rows": (lambda kv, dtype: kv, lambda kv, dtype: kv),
    "columns": (cases.in_columns, cases.in_rows),
}
POISON = 0xFF
"""Every byte of storage before it is written: NaN, or -1."""


class Runner:
    """A module on a device."""

    def __init__(self, device: str, path: str, seed: int) -> None:
        self.device, self.seed = open_device(device), seed
        self.instance = rt.VmInstance()
        self.module = rt.VmModule.mmap(self.instance, path)
        self.hal = rt.create_hal_module(self.instance, self.device)
        self.context = rt.VmContext(self.instance, [self.hal, self.module])

    def verdict(self, function: str, draw: int, is_kernel: bool, pages: str) -> Verdict:
        """Of all samples of a draw, the worst."""
        if pages not in PAGE_ORDERS:
            known = ", ".join(PAGE_ORDERS)
            return Verdict(problem=f"the suite knows pages in {known}, not in {pages}")
        worst = Verdict()
        for i, sample in enumerate(samples_of(draw, self.seed)):
            try:
                results = self.run(function, all_draws()[draw], sample, pages)
            except IREE_ERRORS as error:
                return Verdict(problem=f"sample {i} did not run: {str(error).splitlines()[0]}")
            worst = worst.worse(sample.judge(results, is_kernel))
        return worst

    def run(self, function: str, draw: Draw, sample: Sample, pages: str) -> list[Array]:
        to_pages, to_rows = PAGE_ORDERS[pages]
        call = draw.call
        arguments, at = rt.VmVariantList(16), None
        there = zip(call.op.operands, call.operands, sample.operands, strict=True)
        for spec, wanted, array in there:
            if wanted is None or array is None:
                continue
            if spec.name == "kv":
                at, array = wanted, to_pages(array, draw.dtype)
            arguments.push_ref(self.put(array, wanted.dtype))
        stored = has_storage(call)
        shapes = [_shape(t, sample) for t in call.results]
        for there, t, shape in zip(stored, call.results, shapes, strict=True):
            if there:
                nbytes = int(np.prod(shape)) * np.dtype(NUMPY[t.dtype]).itemsize
                poison = np.full(nbytes, POISON, np.uint8).view(NUMPY[t.dtype]).reshape(shape)
                arguments.push_ref(self.put(poison, t.dtype))
        results = rt.VmVariantList(len(shapes))
        self.context.invoke(self.module.lookup_function(function), arguments, results)
        found = [
            self.get(results.get_as_object(i, rt.HalBufferView), t)
            for i, t in enumerate(call.results)
        ]
        return [
            to_rows(y, draw.dtype) if t == at else y
            for y, t in zip(found, call.results, strict=True)
        ]

    def put(self, array: Array, dtype: str) -> rt.HalBufferView:
        """An array on the device, in whole words as an archive of parameters has it: on Vulkan
        the last element of an odd number of bf16 reads as 0 where the buffer ends with it."""
        assert array.dtype == NUMPY[dtype], f"{array.dtype} for {dtype}"
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        padding = np.full(-raw.size % 4, POISON, np.uint8)
        view = self.device.allocator.allocate_buffer_copy(
            memory_type=rt.MemoryType.DEVICE_LOCAL,
            allowed_usage=rt.BufferUsage.DEFAULT | rt.BufferUsage.MAPPING,
            device=self.device,
            buffer=np.concatenate([raw, padding]),
            element_type=ELEMENTS["i8"],
        )
        return rt.HalBufferView(view.get_buffer(), array.shape, int(ELEMENTS[dtype]))

    def get(self, view: rt.HalBufferView, t: TensorType) -> Array:
        """A result; queues copy words of four bytes."""
        shape, dtype = tuple(view.shape), np.dtype(NUMPY[t.dtype])
        rest = int(np.prod(shape)) * dtype.itemsize % 4
        assert not rest, f"a result {shape} of {dtype} is not whole words"
        return read_back(self.device, view, dtype)


@functools.cache
def samples_of(draw: int, seed: int) -> Sequence[Sample]:
    return all_draws()[draw].samples(np.random.default_rng((seed, draw)))


def _shape(t: TensorType, sample: Sample) -> tuple[int, ...]:
    """Of a result: its dynamic dim is the tokens, which the first operand has."""
    first = sample.operands[0]
    assert first is not None
    return tuple(len(first) if d is None else d for d in t.shape)


def main() -> None:
    job: dict[str, Any] = json.load(sys.stdin)
    runner = Runner(job["device"], job["path"], job["seed"])
    for i, function in enumerate(job["functions"]):
        for j, (draw, is_kernel, pages) in enumerate(function["uses"]):
            print(json.dumps({"begin": [i, j]}), flush=True)
            verdict = runner.verdict(function["name"], draw, is_kernel, pages)
            print(json.dumps({"verdict": dataclasses.asdict(verdict)}), flush=True)


if __name__ == "__main__":
    main()
