"""llm.silu_mul and llm.gelu_mul: the gate of a gated feed-forward layer (Shazeer, 2020).

    silu_mul:  y = gate * sigmoid(gate) * up                                            SwiGLU
    gelu_mul:  y = gate / 2 * (1 + tanh(√(2/π) (gate + 0.044715 gate³))) * up            GEGLU
                 = gate * sigmoid(a gate + b gate³) * up,  a = 2 √(2/π), b = 0.044715 a

Shape legend: T tokens, F intermediate features.

GELU is the approximation of Hendrycks & Gimpel (2016), "gelu_pytorch_tanh" in configs.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from llmir.dialect_ext.base import Array, Call, Lowering, Op, Operand, everywhere, literal
from llmir.dialect_ext.elementwise import emit_elementwise
from llmir.dialect_ext.gpu_rows import gated_mul_lowerings
from llmir.dialect_ext.types import TensorType

_GELU_A = 2 * math.sqrt(2 / math.pi)
_GELU_B = 0.044715 * _GELU_A


def silu(x: Array) -> Array:
    """x * sigmoid(x), float64."""
    return _times_sigmoid(x, x)


def gelu_tanh(x: Array) -> Array:
    """x * sigmoid(a x + b x³), float64."""
    return _times_sigmoid(x, _GELU_A * x + _GELU_B * x**3)


def _times_sigmoid(x: Array, of: Array) -> Array:
    return x * 0.5 * (1 + np.tanh(of / 2))  # the form that cannot overflow


GATES = {"silu": silu, "gelu_tanh": gelu_tanh}
"""What gates are called in attributes, and float64 → float64."""


class GatedMul(Op):
    """gate f32[T, F], up f32[T, F] → f32[T, F].  activation: one of GATES."""

    activation: ClassVar[str]
    operands = (
        Operand(name="gate", dims=("T", "F"), dtypes=("f32",)),
        Operand(name="up", dims=("T", "F"), dtypes=("f32",)),
    )

    def result_types(self, call: Call) -> tuple[TensorType, ...]:
        gate = call.type_of("gate")
        return (gate,)

    def reference(self, gate: Array, up: Array) -> Array:
        return (GATES[self.activation](gate.astype(np.float64)) * up).astype(np.float32)


class SiluMul(GatedMul):
    """See GatedMul."""

    name = "silu_mul"
    activation = "silu"

    @property
    def lowerings(self) -> tuple[Lowering, ...]:
        return (
            *gated_mul_lowerings(self.activation),
            _portable("    %neg = arith.negf %left : f32"),
        )


class GeluMul(GatedMul):
    """See GatedMul."""

    name = "gelu_mul"
    activation = "gelu_tanh"

    @property
    def lowerings(self) -> tuple[Lowering, ...]:
        # A square that overflows is infinite, of the sign that it should have.
        return (
            *gated_mul_lowerings(self.activation),
            _portable(f"""    %a = arith.constant {literal(-_GELU_A)} : f32
    %b = arith.constant {literal(-_GELU_B)} : f32
    %square = arith.mulf %left, %left : f32
    %b_square = arith.mulf %square, %b : f32
    %slope = arith.addf %b_square, %a : f32
    %neg = arith.mulf %left, %slope : f32"""),
        )


def _portable(negated: str) -> Lowering:
    """g / (1 + e^neg) * u.  negated: MLIR that defines %neg f32 from the gate, %left."""
    body = f"""{negated}
    %e = math.exp %neg : f32
    %den = arith.addf %e, %one : f32
    %gated = arith.divf %left, %den : f32
    %result = arith.mulf %gated, %right : f32"""

    def emit(call: Call, symbol: str) -> str:
        one = "  %one = arith.constant 1.0 : f32"
        return emit_elementwise(call, symbol, body, before=one)

    return Lowering(provider="portable", supports=everywhere, emit=emit)
