"""Operands of a step's ops: as a device takes them, and as the reference in numpy does.

They differ for bf16, which numpy lacks, and for KV pages in the order of the C kernels.
This module needs the compile side's definitions of ops: import it where they are at hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import iree.runtime as rt
import numpy as np
from numpy.typing import NDArray

from llmir.artifact import Artifact, CallOperand, ModuleEntry, StepCall
from llmir.bench.op_costs import size_of
from llmir.dialect_ext import kv_formats
from llmir.dialect_ext.base import Call
from llmir.dialect_ext.c_pages import in_columns, in_rows
from llmir.dialect_ext.registry import find_lowering
from llmir.formats.floats import to_bf16
from llmir.runtime.base import StepBatch

Array = NDArray[Any]

_ELEMENTS: dict[str, tuple[Any, Any]] = {
    "f32": (rt.HalElementType.FLOAT_32, np.float32),
    "f16": (rt.HalElementType.FLOAT_16, np.float16),
    "bf16": (rt.HalElementType.BFLOAT_16, np.uint16),
    "i32": (rt.HalElementType.SINT_32, np.int32),
    "i8": (rt.HalElementType.SINT_8, np.int8),
}
_ROWS = "rows"  # the order of elements in pages that the tensor's type says


@dataclass(frozen=True, slots=True)
class Made:
    """The operands of one call, and what its results are compared as.

    on_device:  (array, element type) of those that are there, in order
    reference:  one per operand of the signature, None where it is absent
    pages:      how KV pages are ordered: "rows" or the C kernels' "columns"
    """

    call: Call
    on_device: list[tuple[Array, Any]]
    reference: list[Array | None]
    pages: str

    @property
    def result_dtypes(self) -> list[Any]:
        """numpy's types of the results as a device gives them."""
        return [_ELEMENTS[t.dtype][1] for t in self.call.results]

    def expected(self) -> list[Array]:
        """What the reference gives, float32 or integers."""
        given = self.call.op.reference(*self.reference, **self.call.attrs)
        results = given if isinstance(given, tuple) else (given,)
        return [
            self._read(r, rounded=False) if t.rank == 5 else np.asarray(r)
            for r, t in zip(results, self.call.results, strict=True)
        ]

    def comparable(self, found: Sequence[Array]) -> list[Array]:
        """What a device gave, as `expected` has it."""
        return [
            self._read(self._in_rows(r), rounded=True) if t.rank == 5 else r
            for r, t in zip(found, self.call.results, strict=True)
        ]

    def limits(self, of_floats: float, of_pages: Mapping[str, float]) -> list[float]:
        """What each result may be off.

        Attention may multiply bf16 pages as bf16, so its result is as coarse as they are.
        """
        there = [name for name, _ in self.call.present]
        form = kv_formats.kv_pages(self.call).format if "kv" in there else ""
        floats = of_pages[form] if form == "bf16" else of_floats
        return [of_pages[form] if t.rank == 5 else floats for t in self.call.results]

    def _in_rows(self, pages: Array) -> Array:
        kv = kv_formats.kv_pages(self.call)
        return pages if self.pages == _ROWS else in_rows(pages, kv.format)

    def _read(self, rows: Array, *, rounded: bool) -> Array:
        """Pages as numbers; rounded: as the device stores them, else as the reference does."""
        kv = kv_formats.kv_pages(self.call)
        if kv.format == "bf16":
            bits = rows if rounded else to_bf16(rows)
            return _from_bf16(bits)
        return kv_formats.read(rows, kv.dim)


@dataclass(slots=True)
class Operands:
    """Makes the operands of the calls of a module: its parameters, and numbers of our own."""

    artifact: Artifact
    module: ModuleEntry
    batch: StepBatch
    _index: rt.ParameterIndex = field(default_factory=rt.ParameterIndex)
    _entries: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._index.load(str(self.artifact.file(self.module.weights)), mmap=True)
        self._entries = dict(self._index.items())

    def of(self, call: Call, step_call: StepCall) -> Made:
        """The operands of a call, those of its first occurrence in the step."""
        pages = find_lowering(step_call.op, step_call.provider, step_call.variant).pages
        rng = np.random.default_rng(0)
        on_device, by_name = [], {}
        for operand, source in zip(step_call.operands, step_call.sources[0], strict=True):
            element, dtype = _ELEMENTS[operand.dtype]
            array = self._array(call, step_call, operand, source, dtype, rng)
            numbers = _from_bf16(array) if operand.dtype == "bf16" else array
            if operand.name == "kv" and pages != _ROWS:
                array = in_columns(array, kv_formats.kv_pages(call).format)
            on_device.append((array, element))
            by_name[operand.name] = numbers
        reference = [by_name.get(spec.name) for spec in call.op.operands]
        return Made(call, on_device, reference, pages)

    def _array(
        self,
        call: Call,
        step_call: StepCall,
        operand: CallOperand,
        source: str,
        dtype: Any,
        rng: np.random.Generator,
    ) -> Array:
        if operand.kind == "parameter":
            raw = np.frombuffer(self._entries[source].file_view, np.uint8)
            return raw.view(dtype).reshape(tuple(map(int, operand.dims)))
        if operand.name == "kv":
            return self._pages(call, rng)
        if operand.kind == "argument":
            return self._argument(step_call, source)
        sizes = {"T": len(self.batch.token_ids), "L": len(self.batch.logit_rows)}
        shape = tuple(size_of(dim, sizes) for dim in operand.dims)
        return rng.standard_normal(shape, np.float32)

    def _pages(self, call: Call, rng: np.random.Generator) -> Array:
        """Pages of a layer full of normal numbers, in the tensor's own order."""
        kv = kv_formats.kv_pages(call)
        num_pages = int(self.batch.page_table.max()) + 1
        numbers = rng.standard_normal((num_pages, 2, kv.heads, kv.page_size, kv.dim), np.float32)
        if kv.format == "bf16":
            return to_bf16(numbers)
        if kv.format in ("int8", "fp8"):
            return (
                kv_formats.to_int8(numbers) if kv.format == "int8" else kv_formats.to_fp8(numbers)
            )
        return numbers.astype(_ELEMENTS[kv.element][1])

    def _argument(self, step_call: StepCall, source: str) -> Array:
        """An array of the batch; of several groups of layers, that of the call's own."""
        array: Array = getattr(self.batch, source)
        if source not in ("page_table", "slots"):
            return array
        pages = next((s for s in step_call.sources[0] if s.startswith("kv_")), "kv_0")
        kv = self.artifact.manifest.kv
        return array[kv.group_of_layer[int(pages.removeprefix("kv_"))]]


def _from_bf16(bits: Array) -> Array:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
