"""llm.embedding and llm.quantized_embedding: rows of a table, by index.

    y[t, :] = table[ids[t], :]                                                 embedding
    y[t, k] = (quants[ids[t], k] - zero_point) * scales[ids[t], k / g] + mins[ids[t], k / g]

Shape legend: T rows wanted, V rows of the table, K features, G groups of g
elements, B bytes a group.  A quantised table has the layout of
`llm.quantized_matmul`, so that a tied embedding is stored once.  The ids must
be in [0, V): the engine checks tokens.
"""

from __future__ import annotations

import numpy as np

from llmir.dialect_ext.base import (
    Array,
    Attribute,
    Call,
    Lowering,
    Op,
    Operand,
    literal,
)
from llmir.dialect_ext.packed_matmul import packed_lowerings, packing_refusal
from llmir.dialect_ext.types import TensorType, is_static
from llmir.dialect_ext.whole_words import ends_within_a_word
from llmir.formats.base import GroupQuantized, QuantLayout
from llmir.targets import Target


class Embedding(Op):
    """ids i32[T], table f32|f16|bf16[V, K] → f32[T, K]."""

    name = "embedding"
    operands = (
        Operand(name="ids", dims=("T",), dtypes=("i32",)),
        Operand(name="table", dims=("V", "K"), dtypes=("f32", "f16", "bf16")),
    )

    def check(self, call: Call) -> None:
        table = call.type_of("table")
        self.expect(is_static(table.shape[1]), f"K must be static, got table {table}")

    def result_types(self, call: Call) -> tuple[TensorType, ...]:
        ids = call.type_of("ids")
        table = call.type_of("table")
        return (TensorType((ids.shape[0], table.shape[1]), "f32"),)

    def reference(self, ids: Array, table: Array) -> Array:
        return table[ids].astype(np.float32)

    @property
    def lowerings(self) -> tuple[Lowering, ...]:
        return (
            *packed_lowerings(_packed_supports),
            Lowering(provider="portable", supports=_float_tables, emit=_emit_float),
        )


class QuantizedEmbedding(Op):
    """ids i32[T], quants i8[V, G, B], scales f32[V, G], mins f32[V, G]? → f32[T, K].

    bits (4 or 8), group_size and zero_point as in formats.QuantLayout.
    """

    name = "quantized_embedding"
    operands = (
        Operand(name="ids", dims=("T",), dtypes=("i32",)),
        Operand(name="quants", dims=("V", "G", "B"), dtypes=("i8",)),
        Operand(name="scales", dims=("V", "G"), dtypes=("f32",)),
        Operand(name="mins", dims=("V", "G"), dtypes=("f32",), optional=True),
    )
    attributes = (
        Attribute(name="bits", kind=int),
        Attribute(name="group_size", kind=int),
        Attribute(name="zero_point", kind=int),
        Attribute(name="format", kind=str, default=""),
    )

    def check(self, call: Call) -> None:
        quants = call.type_of("quants")
        self.expect(all(map(is_static, quants.shape)), f"quants must be static, got {quants}")
        self.expect(call.attrs["bits"] in (4, 8), f"bits must be 4 or 8, got {call.attrs['bits']}")
        expected = int(call.attrs["group_size"]) * int(call.attrs["bits"]) // 8
        self.expect(
            quants.shape[2] == expected,
            f"quants {quants} have {quants.shape[2]} bytes a group; groups of "
            f"{call.attrs['group_size']} at {call.attrs['bits']} bits have {expected}",
        )

    def result_types(self, call: Call) -> tuple[TensorType, ...]:
        ids = call.type_of("ids")
        quants = call.type_of("quants")
        return (TensorType((ids.shape[0], quants.shape[1] * int(call.attrs["group_size"])), "f32"),)

    def reference(
        self,
        ids: Array,
        quants: Array,
        scales: Array,
        mins: Array | None,
        *,
        bits: int,
        group_size: int,
        zero_point: int,
        format: str = "",
    ) -> Array:
        layout = QuantLayout(
            bits=bits,
            group_size=group_size,
            zero_point=zero_point,
            has_mins=mins is not None,
        )
        rows = GroupQuantized(
            layout=layout,
            quants=quants[ids],
            scales=scales[ids],
            mins=None if mins is None else mins[ids],
        )
        return rows.dequantize()

    @property
    def lowerings(self) -> tuple[Lowering, ...]:
        return (
            *packed_lowerings(_packed_supports),
            Lowering(provider="portable", supports=_quantized_tables, emit=_emit_quantized),
        )


def _packed_supports(call: Call, target: Target) -> str | None:
    """Of the kernels that read packed weights (packed_matmul.py)."""
    table = call.operands[1]
    if table is not None and not is_static(table.shape[0]):
        return f"V must be static, got table {table}"
    return packing_refusal(call, target, call.results[0].shape[1])


def _float_tables(call: Call, target: Target) -> str | None:
    if target.kind == "vulkan" and call.type_of("table").dtype == "f16":
        return "f16 tables are read wrongly by a Vulkan driver; store the weights as bf16 or f32"
    return ends_within_a_word(call.type_of("table"), target)


def _quantized_tables(call: Call, target: Target) -> str | None:
    return ends_within_a_word(call.type_of("quants"), target)


def _emit_float(call: Call, symbol: str) -> str:
    table = call.type_of("table")
    read = f"tensor.extract %table[%row, %k] : {table}"
    if table.dtype == "f32":
        return _gather(call, symbol, f"    %r = {read}")
    return _gather(call, symbol, f"    %v = {read}\n    %r = arith.extf %v : {table.dtype} to f32")


def _emit_quantized(call: Call, symbol: str) -> str:
    return _gather(call, symbol, _quantized_body(call))


def _gather(call: Call, symbol: str, body: str) -> str:
    """An all-parallel generic that reads by tensor.extract: it compiles on every target."""
    ids, y = call.type_of("ids"), call.results[0]
    dyn = "" if is_static(y.shape[0]) else "%t_size"
    return f"""
{call.signature(symbol)} {{
  %c0 = arith.constant 0 : index
  %t_size = tensor.dim %ids, %c0 : {ids}
  %empty = tensor.empty({dyn}) : {y}
  %y = linalg.generic {{
      indexing_maps = [affine_map<(t, k) -> (t)>, affine_map<(t, k) -> (t, k)>],
      iterator_types = ["parallel", "parallel"]
  }} ins(%ids : {ids}) outs(%empty : {y}) {{
  ^bb0(%id: i32, %o: f32):
    %row = arith.index_cast %id : i32 to index
    %k = linalg.index 1 : index
{body}
    linalg.yield %r : f32
  }} -> {y}
  return %y : {y}
}}
"""


def _quantized_body(call: Call) -> str:
    g, bits = int(call.attrs["group_size"]), int(call.attrs["bits"])
    quants, scales = call.type_of("quants"), call.type_of("scales")
    lines = [
        f"%g = arith.constant {g} : index",
        "%group = arith.divui %k, %g : index",
        "%in = arith.remui %k, %g : index",
    ]
    if bits == 8:
        lines += [
            f"%byte = tensor.extract %quants[%row, %group, %in] : {quants}",
            "%q = arith.sitofp %byte : i8 to f32",
        ]
    else:
        lines += [
            f"%half = arith.constant {g // 2} : index",
            "%j = arith.remui %in, %half : index",
            "%high = arith.divui %in, %half : index",
            f"%byte = tensor.extract %quants[%row, %group, %j] : {quants}",
            "%wide = arith.extui %byte : i8 to i32",
            "%c4 = arith.constant 4 : i32",
            "%c15 = arith.constant 15 : i32",
            "%high32 = arith.index_cast %high : index to i32",
            "%shift = arith.muli %high32, %c4 : i32",
            "%moved = arith.shrui %wide, %shift : i32",
            "%nibble = arith.andi %moved, %c15 : i32",
            "%q = arith.uitofp %nibble : i32 to f32",
        ]
    lines += [
        f"%zp = arith.constant {literal(int(call.attrs['zero_point']))} : f32",
        "%centred = arith.subf %q, %zp : f32",
        f"%scale = tensor.extract %scales[%row, %group] : {scales}",
    ]
    if call.operand("mins") is None:
        lines.append("%r = arith.mulf %centred, %scale : f32")
    else:
        lines += [
            "%scaled = arith.mulf %centred, %scale : f32",
            f"%min = tensor.extract %mins[%row, %group] : {scales}",
            "%r = arith.addf %scaled, %min : f32",
        ]
    return "\n".join(f"    {line}" for line in lines)
