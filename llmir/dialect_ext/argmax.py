"""llm.argmax: the index of the largest element of each row.

    y[l] = the lowest v with x[l, v] = max(x[l, :]);  -1 where that maximum is not finite

Shape legend: L rows, V elements of a row.  -1 tells the caller that the device computed NaN or
infinity: a greedy choice from such logits would look like an answer.
"""

from __future__ import annotations

import numpy as np

from llmir.dialect_ext.base import Array, Call, Lowering, Op, Operand, everywhere
from llmir.dialect_ext.types import TensorType, is_static


class Argmax(Op):
    """x f32[L, V] → i32[L]."""

    name = "argmax"
    operands = (Operand(name="x", dims=("L", "V"), dtypes=("f32",)),)

    def check(self, call: Call) -> None:
        x = call.type_of("x")
        self.expect(is_static(x.shape[1]), f"V must be static, got {x}")

    def result_types(self, call: Call) -> tuple[TensorType, ...]:
        return (TensorType((call.type_of("x").shape[0],), "i32"),)

    def reference(self, x: Array) -> Array:
        best = x.argmax(axis=1)  # of a row with NaN, the first NaN
        finite = np.isfinite(x[np.arange(len(x)), best])
        return np.where(finite, best, -1).astype(np.int32)

    @property
    def lowerings(self) -> tuple[Lowering, ...]:
        return (Lowering(provider="portable", supports=everywhere, emit=_emit),)


def _emit(call: Call, symbol: str) -> str:
    """A loop over each row, in an all-parallel generic: the form that every target compiles."""
    x, y = call.type_of("x"), call.results[0]
    dyn = "" if is_static(y.shape[0]) else "%l_size"
    return f"""
{call.signature(symbol)} {{
  %c0 = arith.constant 0 : index
  %l_size = tensor.dim %x, %c0 : {x}
  %empty = tensor.empty({dyn}) : {y}
  %y = linalg.generic {{
      indexing_maps = [affine_map<(l) -> (l)>], iterator_types = ["parallel"]
  }} outs(%empty : {y}) {{
  ^bb0(%o: i32):
    %l = linalg.index 0 : index
    %first = arith.constant 0 : index
    %step = arith.constant 1 : index
    %columns = arith.constant {x.shape[1]} : index
    %none = arith.constant -1 : i32
    %lowest = arith.constant 0xFF800000 : f32
    %highest = arith.constant 0x7F800000 : f32
    %best:3 = scf.for %v = %first to %columns step %step
        iter_args(%most = %lowest, %at = %none, %bad = %first) -> (f32, i32, index) {{
      %e = tensor.extract %x[%l, %v] : {x}
      %more = arith.cmpf ogt, %e, %most : f32
      %most_now = arith.select %more, %e, %most : f32
      %v_32 = arith.index_cast %v : index to i32
      %at_now = arith.select %more, %v_32, %at : i32
      %nan = arith.cmpf uno, %e, %e : f32
      %infinite = arith.cmpf oeq, %e, %highest : f32
      %not_finite = arith.ori %nan, %infinite : i1
      %bad_now = arith.select %not_finite, %step, %bad : index
      scf.yield %most_now, %at_now, %bad_now : f32, i32, index
    }}
    %good = arith.cmpi eq, %best#2, %first : index
    %r = arith.select %good, %best#1, %none : i32
    linalg.yield %r : i32
  }} -> {y}
  return %y : {y}
}}
"""
