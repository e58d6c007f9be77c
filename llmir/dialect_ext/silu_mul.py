"""llm.silu_mul: the gate of a SwiGLU feed-forward layer (Shazeer, 2020).

    y = gate * sigmoid(gate) * up

Shape legend: T tokens, F intermediate features.
"""

from __future__ import annotations

import numpy as np

from llmir.dialect_ext.base import Array, Call, Lowering, Op, Operand, everywhere
from llmir.dialect_ext.types import TensorType, is_static


class SiluMul(Op):
    """gate f32[T, F], up f32[T, F] → f32[T, F]."""

    name = "silu_mul"
    operands = (
        Operand(name="gate", dims=("T", "F"), dtypes=("f32",)),
        Operand(name="up", dims=("T", "F"), dtypes=("f32",)),
    )

    def result_types(self, call: Call) -> tuple[TensorType, ...]:
        gate = call.type_of("gate")
        return (gate,)

    def reference(self, gate: Array, up: Array) -> Array:
        wide = gate.astype(np.float64)
        sigmoid = 0.5 * (1 + np.tanh(wide / 2))  # the form that cannot overflow
        return (wide * sigmoid * up).astype(np.float32)

    @property
    def lowerings(self) -> tuple[Lowering, ...]:
        return (Lowering(provider="portable", supports=everywhere, emit=_emit),)


def _emit(call: Call, symbol: str) -> str:
    t = call.results[0]
    dims = [f"%d{i}" for i, d in enumerate(t.shape) if not is_static(d)]
    reads = "\n".join(
        f"  %i{i} = arith.constant {i} : index\n  %d{i} = tensor.dim %gate, %i{i} : {t}"
        for i, d in enumerate(t.shape)
        if not is_static(d)
    )
    return f"""
{call.signature(symbol)} {{
{reads}
  %one = arith.constant 1.0 : f32
  %empty = tensor.empty({", ".join(dims)}) : {t}
  %y = linalg.generic {{
      indexing_maps = [affine_map<(t, f) -> (t, f)>, affine_map<(t, f) -> (t, f)>,
                       affine_map<(t, f) -> (t, f)>],
      iterator_types = ["parallel", "parallel"]
  }} ins(%gate, %up : {call.type_of("gate")}, {call.type_of("up")}) outs(%empty : {t}) {{
  ^bb0(%g: f32, %u: f32, %o: f32):
    %neg = arith.negf %g : f32
    %e = math.exp %neg : f32
    %den = arith.addf %e, %one : f32
    %silu = arith.divf %g, %den : f32
    %r = arith.mulf %silu, %u : f32
    linalg.yield %r : f32
  }} -> {t}
  return %y : {t}
}}
"""
