"""llm.add: the sum of two tensors, a residual connection.

    y = a + b

Shape legend: T tokens, D features.  An op, and not torch's own, so that a pass can see it.
"""

from __future__ import annotations

from llmir.dialect_ext.base import Array, Call, Lowering, Op, Operand, everywhere
from llmir.dialect_ext.elementwise import emit_elementwise
from llmir.dialect_ext.types import TensorType


class Add(Op):
    """a f32[T, D], b f32[T, D] → f32[T, D]."""

    name = "add"
    operands = (
        Operand(name="a", dims=("T", "D"), dtypes=("f32",)),
        Operand(name="b", dims=("T", "D"), dtypes=("f32",)),
    )

    def result_types(self, call: Call) -> tuple[TensorType, ...]:
        return (call.type_of("a"),)

    def reference(self, a: Array, b: Array) -> Array:
        return a + b

    @property
    def lowerings(self) -> tuple[Lowering, ...]:
        return (Lowering(provider="portable", supports=everywhere, emit=_emit),)


def _emit(call: Call, symbol: str) -> str:
    return emit_elementwise(call, symbol, "    %result = arith.addf %left, %right : f32")
