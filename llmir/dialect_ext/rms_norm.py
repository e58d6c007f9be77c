"""llm.rms_norm: root-mean-square normalisation (Zhang & Sennrich, 2019).

    y[r, d] = x[r, d] / sqrt(mean_d(x[r, :]²) + eps) * weight[d]

Shape legend: R rows (tokens, or tokens × heads for q/k norm), D features.
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
    everywhere,
    literal,
)
from llmir.dialect_ext.gpu_rows import rms_norm_lowerings
from llmir.dialect_ext.types import TensorType, is_static


class RmsNorm(Op):
    """x f32[R, D], weight f32[D], eps → f32[R, D]."""

    name = "rms_norm"
    operands = (
        Operand(name="x", dims=("R", "D"), dtypes=("f32",)),
        Operand(name="weight", dims=("D",), dtypes=("f32",)),
    )
    attributes = (Attribute(name="eps", kind=float),)

    def check(self, call: Call) -> None:
        weight = call.type_of("weight")
        self.expect(is_static(weight.shape[0]), f"D must be static, got weight {weight}")
        self.expect(float(call.attrs["eps"]) > 0, f"eps must be positive, got {call.attrs['eps']}")

    def result_types(self, call: Call) -> tuple[TensorType, ...]:
        x = call.type_of("x")
        weight = call.type_of("weight")
        return (TensorType((x.shape[0], weight.shape[0]), "f32"),)

    def reference(self, x: Array, weight: Array, *, eps: float) -> Array:
        mean = np.mean(x.astype(np.float64) ** 2, axis=-1, keepdims=True)
        return (x / np.sqrt(mean + eps) * weight).astype(np.float32)

    @property
    def lowerings(self) -> tuple[Lowering, ...]:
        return (
            *rms_norm_lowerings(),
            Lowering(provider="portable", supports=everywhere, emit=_emit),
        )


def _emit(call: Call, symbol: str) -> str:
    """A reduction over D, then one elementwise pass; IREE fuses the two."""
    x, y = call.type_of("x"), call.results[0]
    rows, d = x.shape[0], call.type_of("weight").shape[0]
    sums = TensorType((rows,), "f32")
    dyn = "" if is_static(rows) else "%rows"
    return f"""
{call.signature(symbol)} {{
  %c0 = arith.constant 0 : index
  %zero = arith.constant 0.0 : f32
  %eps = arith.constant {literal(float(call.attrs["eps"]))} : f32
  %d = arith.constant {literal(d)} : f32
  %rows = tensor.dim %x, %c0 : {x}
  %empty = tensor.empty({dyn}) : {sums}
  %init = linalg.fill ins(%zero : f32) outs(%empty : {sums}) -> {sums}
  %sum = linalg.generic {{
      indexing_maps = [affine_map<(r, d) -> (r, d)>, affine_map<(r, d) -> (r)>],
      iterator_types = ["parallel", "reduction"]
  }} ins(%x : {x}) outs(%init : {sums}) {{
  ^bb0(%v: f32, %acc: f32):
    %sq = arith.mulf %v, %v : f32
    %r = arith.addf %acc, %sq : f32
    linalg.yield %r : f32
  }} -> {sums}
  %out = tensor.empty({dyn}) : {y}
  %y = linalg.generic {{
      indexing_maps = [affine_map<(r, d) -> (r, d)>, affine_map<(r, d) -> (r)>,
                       affine_map<(r, d) -> (d)>, affine_map<(r, d) -> (r, d)>],
      iterator_types = ["parallel", "parallel"]
  }} ins(%x, %sum, %weight : {x}, {sums}, {call.type_of("weight")}) outs(%out : {y}) {{
  ^bb0(%v: f32, %s: f32, %w: f32, %o: f32):
    %mean = arith.divf %s, %d : f32
    %biased = arith.addf %mean, %eps : f32
    %root = math.sqrt %biased : f32
    %unit = arith.divf %v, %root : f32
    %scaled = arith.mulf %unit, %w : f32
    linalg.yield %scaled : f32
  }} -> {y}
  return %y : {y}
}}
"""
