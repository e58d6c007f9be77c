"""llm.argmax: the index of the largest element of each row.

    y[l] = the lowest v with x[l, v] = max(x[l, :]);  -1 where that maximum is not finite

Shape legend: L rows, V elements of a row.  -1 tells the caller that the device computed NaN or
infinity: a greedy choice from such logits would look like an answer.
"""

from __future__ import annotations

import math

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
    """The largest of each of about √V chunks of a row, then of those: loops in parallel generics.

    The form that every target compiles, in which no thread reads more than some hundred
    elements: a GPU's thread waits for each.  A chunk with NaN or infinity in it becomes NaN.
    """
    x, y = call.type_of("x"), call.results[0]
    columns = int(x.shape[1] or 0)
    width = max(1, math.isqrt(columns))
    chunks = -(-columns // width)
    most, at = (TensorType((x.shape[0], chunks), dtype) for dtype in ("f32", "i32"))
    dyn = "" if is_static(y.shape[0]) else "%l_size"
    each = "affine_map<(l, c) -> (l, c)>"
    return f"""
{call.signature(symbol)} {{
  %c0 = arith.constant 0 : index
  %l_size = tensor.dim %x, %c0 : {x}
  %no_most = tensor.empty({dyn}) : {most}
  %no_at = tensor.empty({dyn}) : {at}
  %most, %at = linalg.generic {{
      indexing_maps = [{each}, {each}], iterator_types = ["parallel", "parallel"]
  }} outs(%no_most, %no_at : {most}, {at}) {{
  ^bb0(%o: f32, %o_at: i32):
    %l = linalg.index 0 : index
    %c = linalg.index 1 : index
    %step = arith.constant 1 : index
    %width = arith.constant {width} : index
    %columns = arith.constant {columns} : index
    %none = arith.constant -1 : i32
    %lowest = arith.constant 0xFF800000 : f32
    %highest = arith.constant 0x7F800000 : f32
    %not_a_number = arith.constant 0x7FC00000 : f32
    %zero = arith.constant 0 : i32
    %one = arith.constant 1 : i32
    %begin = arith.muli %c, %width : index
    %far = arith.addi %begin, %width : index
    %is_over = arith.cmpi sgt, %far, %columns : index
    %end = arith.select %is_over, %columns, %far : index
    %best:3 = scf.for %v = %begin to %end step %step
        iter_args(%so_far = %lowest, %where = %none, %bad = %zero) -> (f32, i32, i32) {{
      %e = tensor.extract %x[%l, %v] : {x}
      %more = arith.cmpf ogt, %e, %so_far : f32
      %most_now = arith.select %more, %e, %so_far : f32
      %v_32 = arith.index_cast %v : index to i32
      %at_now = arith.select %more, %v_32, %where : i32
      %nan = arith.cmpf uno, %e, %e : f32
      %infinite = arith.cmpf oeq, %e, %highest : f32
      %not_finite = arith.ori %nan, %infinite : i1
      %bad_now = arith.select %not_finite, %one, %bad : i32
      scf.yield %most_now, %at_now, %bad_now : f32, i32, i32
    }}
    %good = arith.cmpi eq, %best#2, %zero : i32
    %r = arith.select %good, %best#0, %not_a_number : f32
    linalg.yield %r, %best#1 : f32, i32
  }} -> ({most}, {at})
  %empty = tensor.empty({dyn}) : {y}
  %y = linalg.generic {{
      indexing_maps = [affine_map<(l) -> (l)>], iterator_types = ["parallel"]
  }} outs(%empty : {y}) {{
  ^bb0(%o: i32):
    %l = linalg.index 0 : index
    %first = arith.constant 0 : index
    %step = arith.constant 1 : index
    %chunks = arith.constant {chunks} : index
    %none = arith.constant -1 : i32
    %lowest = arith.constant 0xFF800000 : f32
    %zero = arith.constant 0 : i32
    %one = arith.constant 1 : i32
    %best:3 = scf.for %c = %first to %chunks step %step
        iter_args(%so_far = %lowest, %where = %none, %bad = %zero) -> (f32, i32, i32) {{
      %e = tensor.extract %most[%l, %c] : {most}
      %e_at = tensor.extract %at[%l, %c] : {at}
      %more = arith.cmpf ogt, %e, %so_far : f32
      %most_now = arith.select %more, %e, %so_far : f32
      %at_now = arith.select %more, %e_at, %where : i32
      %nan = arith.cmpf uno, %e, %e : f32
      %bad_now = arith.select %nan, %one, %bad : i32
      scf.yield %most_now, %at_now, %bad_now : f32, i32, i32
    }}
    %good = arith.cmpi eq, %best#2, %zero : i32
    %r = arith.select %good, %best#1, %none : i32
    linalg.yield %r : i32
  }} -> {y}
  return %y : {y}
}}
"""
