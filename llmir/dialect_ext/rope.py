"""llm.rope: rotary position embedding (Su et al., 2021), half-rotated form.

    y[t, h, i]        = x[t, h, i] * cos - x[t, h, i + D/2] * sin
    y[t, h, i + D/2]  = x[t, h, i + D/2] * cos + x[t, h, i] * sin

with cos, sin = table[positions[t], i], table[positions[t], i + D/2].

Shape legend: T tokens, H heads, D head dim, C positions in the table.
The table (models.rope) holds cosines and sines rather than frequencies: every
scaling variant is then the same op, and no target's own sine, which differ in
the last digits and lose accuracy at large angles, is used.
"""

from __future__ import annotations

import numpy as np

from llmir.dialect_ext.base import Array, Call, Lowering, Op, Operand, everywhere
from llmir.dialect_ext.types import TensorType, is_static


class Rope(Op):
    """x f32[T, H, D], positions i32[T], table f32[C, D] → f32[T, H, D]."""

    name = "rope"
    operands = (
        Operand(name="x", dims=("T", "H", "D"), dtypes=("f32",)),
        Operand(name="positions", dims=("T",), dtypes=("i32",)),
        Operand(name="table", dims=("C", "D"), dtypes=("f32",)),
    )

    def check(self, call: Call) -> None:
        x = call.type_of("x")
        self.expect(
            is_static(x.shape[1]) and is_static(x.shape[2]), f"H and D must be static, got x {x}"
        )
        self.expect(x.shape[2] % 2 == 0, f"D must be even, got x {x}")

    def result_types(self, call: Call) -> tuple[TensorType, ...]:
        x = call.type_of("x")
        return (x,)

    def reference(self, x: Array, positions: Array, table: Array) -> Array:
        half = x.shape[2] // 2
        cos, sin = table[positions][:, None, :half], table[positions][:, None, half:]
        lo, hi = x[:, :, :half], x[:, :, half:]
        return np.concatenate([lo * cos - hi * sin, hi * cos + lo * sin], axis=-1)

    @property
    def lowerings(self) -> tuple[Lowering, ...]:
        return (Lowering(provider="portable", supports=everywhere, emit=_emit),)


def _emit(call: Call, symbol: str) -> str:
    x, table, y = call.type_of("x"), call.type_of("table"), call.results[0]
    half = x.shape[2] // 2
    dyn = "" if is_static(y.shape[0]) else "%t_size"
    return f"""
{call.signature(symbol)} {{
  %c0 = arith.constant 0 : index
  %half = arith.constant {half} : index
  %d_size = arith.constant {x.shape[2]} : index
  %t_size = tensor.dim %x, %c0 : {x}
  %empty = tensor.empty({dyn}) : {y}
  %y = linalg.generic {{
      indexing_maps = [affine_map<(t, h, d) -> (t, h, d)>, affine_map<(t, h, d) -> (t)>,
                       affine_map<(t, h, d) -> (t, h, d)>],
      iterator_types = ["parallel", "parallel", "parallel"]
  }} ins(%x, %positions : {x}, {call.type_of("positions")}) outs(%empty : {y}) {{
  ^bb0(%v: f32, %p: i32, %o: f32):
    %t = linalg.index 0 : index
    %h = linalg.index 1 : index
    %d = linalg.index 2 : index
    %row = arith.index_cast %p : i32 to index
    %is_low = arith.cmpi ult, %d, %half : index
    %i = arith.remui %d, %half : index
    %i_sin = arith.addi %i, %half : index
    %turned = arith.addi %d, %half : index
    %other = arith.remui %turned, %d_size : index
    %cos = tensor.extract %table[%row, %i] : {table}
    %sin = tensor.extract %table[%row, %i_sin] : {table}
    %w = tensor.extract %x[%t, %h, %other] : {x}
    %neg = arith.negf %w : f32
    %signed = arith.select %is_low, %neg, %w : f32
    %a = arith.mulf %v, %cos : f32
    %b = arith.mulf %signed, %sin : f32
    %r = arith.addf %a, %b : f32
    linalg.yield %r : f32
  }} -> {y}
  return %y : {y}
}}
"""
