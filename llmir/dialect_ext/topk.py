"""llm.topk: the k largest elements of each row, and the weight of all of it beside the largest.

    values[l, :] = the k largest x[l, v], falling
    ids[l, :]    = their v, the lower first among equals
    weights[l]   = Σ_v e^(x[l, v] - values[l, 0])
    values and weights NaN, ids -1 where the largest is not finite, or NaN is in the row

Shape legend: L rows, V elements of a row.  Of a row of logits, e^(x - values[l, 0]) / weights[l]
are the probabilities; values[l, 0] + log weights[l] is the log-sum-exp.
"""

from __future__ import annotations

import numpy as np

from llmir.dialect_ext.base import Array, Attribute, Call, Lowering, Op, Operand, everywhere
from llmir.dialect_ext.types import Dim, TensorType, is_static


class Topk(Op):
    """x f32[L, V] → values f32[L, k], ids i32[L, k], weights f32[L].  1 <= k <= V."""

    name = "topk"
    num_results = 3
    operands = (Operand(name="x", dims=("L", "V"), dtypes=("f32",)),)
    attributes = (Attribute(name="k", kind=int),)

    def check(self, call: Call) -> None:
        x = call.type_of("x")
        self.expect(is_static(x.shape[1]), f"V must be static, got {x}")
        self.expect(*k_fits(int(call.attrs["k"]), int(x.shape[1] or 0)))

    def result_types(self, call: Call) -> tuple[TensorType, ...]:
        return topk_types(call.type_of("x").shape[0], int(call.attrs["k"]))

    def reference(self, x: Array, *, k: int) -> tuple[Array, ...]:
        ids = np.argsort(-x, axis=1, kind="stable")[:, :k]
        most = x.max(axis=1, keepdims=True)  # NaN of a row with NaN
        good = np.isfinite(most)
        with np.errstate(invalid="ignore"):
            weights = np.exp(x.astype(np.float64) - most).sum(axis=1)
        nan = np.float32(np.nan)
        return (
            np.where(good, np.take_along_axis(x, ids, axis=1), nan),
            np.where(good, ids, -1).astype(np.int32),
            np.where(good[:, 0], weights, nan).astype(np.float32),
        )

    @property
    def lowerings(self) -> tuple[Lowering, ...]:
        return (Lowering(provider="portable", supports=everywhere, emit=_emit),)


def k_fits(k: int, columns: int) -> tuple[bool, str]:
    """Whether so many can be taken of a row, and what to say if not."""
    return 1 <= k <= columns, f"k must be 1 to {columns}, the length of a row; got {k}"


def topk_types(rows: Dim, k: int) -> tuple[TensorType, ...]:
    """Of the three results."""
    lists = (rows, k)
    return TensorType(lists, "f32"), TensorType(lists, "i32"), TensorType((rows,), "f32")


def _emit(call: Call, symbol: str) -> str:
    """k times the largest of those that come after the one before, in all-parallel generics."""
    x, (values, ids, weights), k = call.type_of("x"), call.results, int(call.attrs["k"])
    at = TensorType(weights.shape, "i32")
    dyn = "" if is_static(weights.shape[0]) else "%l_size"
    to_column = "[0, %j] [%l_size, 1] [1, 1]"
    row = "affine_map<(l) -> (l)>"
    each = "affine_map<(l, j) -> (l, j)>"
    of_row = "affine_map<(l, j) -> (l)>"
    return f"""
{call.signature(symbol)} {{
  %c0 = arith.constant 0 : index
  %c1 = arith.constant 1 : index
  %k = arith.constant {k} : index
  %none = arith.constant -1 : i32
  %highest = arith.constant 0x7F800000 : f32
  %l_size = tensor.dim %x, %c0 : {x}
  %no_values = tensor.empty({dyn}) : {values}
  %no_ids = tensor.empty({dyn}) : {ids}
  %no_row = tensor.empty({dyn}) : {weights}
  %no_at = tensor.empty({dyn}) : {at}
  %above = linalg.fill ins(%highest : f32) outs(%no_row : {weights}) -> {weights}
  %before = linalg.fill ins(%none : i32) outs(%no_at : {at}) -> {at}
  %all:4 = scf.for %j = %c0 to %k step %c1
      iter_args(%vs = %no_values, %is = %no_ids, %last = %above, %last_at = %before)
      -> ({values}, {ids}, {weights}, {at}) {{
    %next, %next_at = linalg.generic {{
        indexing_maps = [{row}, {row}, {row}, {row}], iterator_types = ["parallel"]
    }} ins(%last, %last_at : {weights}, {at}) outs(%no_row, %no_at : {weights}, {at}) {{
    ^bb0(%p: f32, %p_at: i32, %o: f32, %o_at: i32):
      %l = linalg.index 0 : index
      %first = arith.constant 0 : index
      %step = arith.constant 1 : index
      %columns = arith.constant {x.shape[1]} : index
      %nobody = arith.constant -1 : i32
      %lowest = arith.constant 0xFF800000 : f32
      %best:2 = scf.for %v = %first to %columns step %step
          iter_args(%most = %lowest, %most_at = %nobody) -> (f32, i32) {{
        %e = tensor.extract %x[%l, %v] : {x}
        %v_32 = arith.index_cast %v : index to i32
        %less = arith.cmpf olt, %e, %p : f32
        %equal = arith.cmpf oeq, %e, %p : f32
        %later = arith.cmpi sgt, %v_32, %p_at : i32
        %tied = arith.andi %equal, %later : i1
        %after = arith.ori %less, %tied : i1
        %more = arith.cmpf ogt, %e, %most : f32
        %is_first = arith.cmpi eq, %most_at, %nobody : i32
        %better = arith.ori %more, %is_first : i1
        %take = arith.andi %after, %better : i1
        %most_now = arith.select %take, %e, %most : f32
        %at_now = arith.select %take, %v_32, %most_at : i32
        scf.yield %most_now, %at_now : f32, i32
      }}
      linalg.yield %best#0, %best#1 : f32, i32
    }} -> ({weights}, {at})
    %vs_now = tensor.insert_slice %next into %vs{to_column} : {weights} into {values}
    %is_now = tensor.insert_slice %next_at into %is{to_column} : {at} into {ids}
    scf.yield %vs_now, %is_now, %next, %next_at : {values}, {ids}, {weights}, {at}
  }}
  %weights = linalg.generic {{
      indexing_maps = [{row}], iterator_types = ["parallel"]
  }} outs(%no_row : {weights}) {{
  ^bb0(%o: f32):
    %l = linalg.index 0 : index
    %first = arith.constant 0 : index
    %step = arith.constant 1 : index
    %columns = arith.constant {x.shape[1]} : index
    %zero = arith.constant 0.0 : f32
    %nan = arith.constant 0x7FC00000 : f32
    %infinite = arith.constant 0x7F800000 : f32
    %most = tensor.extract %all#0[%l, %first] : {values}
    %sum, %bad = scf.for %v = %first to %columns step %step
        iter_args(%so_far = %zero, %bad_so_far = %first) -> (f32, index) {{
      %e = tensor.extract %x[%l, %v] : {x}
      %less = arith.subf %e, %most : f32
      %weight = math.exp %less : f32
      %sum_now = arith.addf %so_far, %weight : f32
      %is_nan = arith.cmpf uno, %e, %e : f32
      %bad_now = arith.select %is_nan, %step, %bad_so_far : index
      scf.yield %sum_now, %bad_now : f32, index
    }}
    %size = math.absf %most : f32
    %finite = arith.cmpf olt, %size, %infinite : f32
    %no_nan = arith.cmpi eq, %bad, %first : index
    %good = arith.andi %finite, %no_nan : i1
    %r = arith.select %good, %sum, %nan : f32
    linalg.yield %r : f32
  }} -> {weights}
  %values = linalg.generic {{
      indexing_maps = [{each}, {of_row}, {each}], iterator_types = ["parallel", "parallel"]
  }} ins(%all#0, %weights : {values}, {weights}) outs(%no_values : {values}) {{
  ^bb0(%v: f32, %w: f32, %o: f32):
    %bad = arith.cmpf uno, %w, %w : f32
    %r = arith.select %bad, %w, %v : f32
    linalg.yield %r : f32
  }} -> {values}
  %ids = linalg.generic {{
      indexing_maps = [{each}, {of_row}, {each}], iterator_types = ["parallel", "parallel"]
  }} ins(%all#1, %weights : {ids}, {weights}) outs(%no_ids : {ids}) {{
  ^bb0(%i: i32, %w: f32, %o: i32):
    %nobody = arith.constant -1 : i32
    %bad = arith.cmpf uno, %w, %w : f32
    %r = arith.select %bad, %nobody, %i : i32
    linalg.yield %r : i32
  }} -> {ids}
  return %values, %ids, %weights : {values}, {ids}, {weights}
}}
"""
