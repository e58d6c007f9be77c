"""llm.embedding: rows of a table, by index; dequantised if the table is quantised.

    y[t, :] = table[ids[t], :]                                          float table
    y[t, k] = (quants[ids[t], k] - zero_point) * scales[ids[t], k / g] + mins[…]

Shape legend: T rows wanted, V rows of the table, K features, G groups of g.
A quantised table has the layout of `llm.quantized_matmul`, so that a tied
embedding is stored once.  The ids must be in [0, V): the engine checks tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from llmir.dialect_ext.base import (
    Array,
    Attribute,
    AttrValue,
    Call,
    Lowering,
    Op,
    Operand,
    everywhere,
)
from llmir.dialect_ext.types import TensorType, is_static


class Embedding(Op):
    """ids i32[T], table f32|f16|bf16[V, K] → f32[T, K].

    For a quantised table: table i8[V, G*group_bytes], scales f32[V, G], mins f32[V, G]
    optional, and bits, group_size, zero_point as QuantLayout has them.  A float
    table has bits = group_size = zero_point = 0 and no scales.
    """

    name = "embedding"
    operands = (
        Operand(name="ids", dims=("T",), dtypes=("i32",)),
        Operand(name="table", dims=("V", "_width"), dtypes=("f32", "f16", "bf16", "i8")),
        Operand(name="scales", dims=("V", "G"), dtypes=("f32",), optional=True),
        Operand(name="mins", dims=("V", "G"), dtypes=("f32",), optional=True),
    )
    attributes = (
        Attribute(name="bits", kind=int),
        Attribute(name="group_size", kind=int),
        Attribute(name="zero_point", kind=int),
    )

    def check(
        self, operands: Sequence[TensorType | None], attrs: Mapping[str, AttrValue]
    ) -> None:
        _, table, scales, mins = operands
        assert table is not None
        self.expect(is_static(table.shape[1]), f"the table's width must be static, got {table}")
        if table.dtype != "i8":
            self.expect(scales is None and mins is None, "a float table takes no scales or mins")
            self.expect(attrs["bits"] == 0, f"bits must be 0 for a float table: {attrs['bits']}")
            return
        self.expect(attrs["bits"] in (4, 8), f"bits must be 4 or 8, got {attrs['bits']}")
        self.expect(attrs["group_size"] > 0, f"group_size must be > 0: {attrs['group_size']}")
        if scales is None:
            self.fail("a quantised table needs operand 'scales' [V, G]")
            return
        width = scales.shape[1] * int(attrs["group_size"]) * int(attrs["bits"]) // 8
        self.expect(
            width == table.shape[1],
            f"table {table} does not have the {width} bytes a row that scales {scales} and "
            f"{attrs['bits']} bits in groups of {attrs['group_size']} ask for",
        )

    def result_types(
        self, operands: Sequence[TensorType | None], attrs: Mapping[str, AttrValue]
    ) -> tuple[TensorType, ...]:
        ids, table, scales, _ = operands
        assert ids is not None
        assert table is not None
        width = table.shape[1]
        if scales is not None:
            width = scales.shape[1] * int(attrs["group_size"])
        return (TensorType((ids.shape[0], width), "f32"),)

    def reference(self, *operands: Array | None, **attrs: AttrValue) -> Array:
        ids, table, scales, mins = operands
        assert ids is not None
        assert table is not None
        rows = table[ids]
        if scales is None:
            return rows.astype(np.float32)
        rows = rows.reshape(len(ids), scales.shape[1], -1)
        if attrs["bits"] == 4:
            bytes_ = rows.view(np.uint8)
            rows = np.concatenate([bytes_ & 15, bytes_ >> 4], axis=-1)
        y = (rows.astype(np.float32) - np.float32(attrs["zero_point"])) * scales[ids][:, :, None]
        if mins is not None:
            y = y + mins[ids][:, :, None]
        return y.reshape(len(ids), -1)

    @property
    def lowerings(self) -> tuple[Lowering, ...]:
        return (Lowering(provider="portable", supports=everywhere, emit=_emit),)


def _emit(call: Call, symbol: str) -> str:
    """An all-parallel generic that reads by tensor.extract: it compiles on every target."""
    ids, table, y = call.type_of("ids"), call.type_of("table"), call.results[0]
    body = _quantized_body(call) if table.dtype == "i8" else _float_body(table)
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


def _float_body(table: TensorType) -> str:
    read = f"tensor.extract %table[%row, %k] : {table}"
    if table.dtype == "f32":
        return f"    %r = {read}"
    return f"    %v = {read}\n    %r = arith.extf %v : {table.dtype} to f32"


def _quantized_body(call: Call) -> str:
    g, bits = int(call.attrs["group_size"]), int(call.attrs["bits"])
    scales = call.type_of("scales")
    lines = [f"%g = arith.constant {g} : index", "%group = arith.divui %k, %g : index"]
    if bits == 8:
        lines += [
            f"%byte = tensor.extract %table[%row, %k] : {call.type_of('table')}",
            "%q = arith.sitofp %byte : i8 to f32",
        ]
    else:
        lines += [
            f"%half = arith.constant {g // 2} : index",
            "%in = arith.remui %k, %g : index",
            "%j = arith.remui %in, %half : index",
            "%high = arith.divui %in, %half : index",
            "%base = arith.muli %group, %half : index",
            "%col = arith.addi %base, %j : index",
            f"%byte = tensor.extract %table[%row, %col] : {call.type_of('table')}",
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
        f"%zp = arith.constant {int(call.attrs['zero_point'])}.0 : f32",
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
