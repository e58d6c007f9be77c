"""llm.add: the sum of two tensors, a residual connection.

    y = a + b

Shape legend: T tokens, D features.  An op, and not torch's own, so that a pass can see it.
"""

from __future__ import annotations

from llmir.dialect_ext.base import Array, Call, Lowering, Op, Operand, everywhere
from llmir.dialect_ext.types import TensorType, is_static


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
    t = call.results[0]
    dims = [f"%d{i}" for i, d in enumerate(t.shape) if not is_static(d)]
    reads = "\n".join(
        f"  %i{i} = arith.constant {i} : index\n  %d{i} = tensor.dim %a, %i{i} : {t}"
        for i, d in enumerate(t.shape)
        if not is_static(d)
    )
    return f"""
{call.signature(symbol)} {{
{reads}
  %empty = tensor.empty({", ".join(dims)}) : {t}
  %y = linalg.generic {{
      indexing_maps = [affine_map<(t, d) -> (t, d)>, affine_map<(t, d) -> (t, d)>,
                       affine_map<(t, d) -> (t, d)>],
      iterator_types = ["parallel", "parallel"]
  }} ins(%a, %b : {call.type_of("a")}, {call.type_of("b")}) outs(%empty : {t}) {{
  ^bb0(%l: f32, %r: f32, %o: f32):
    %s = arith.addf %l, %r : f32
    linalg.yield %s : f32
  }} -> {t}
  return %y : {t}
}}
"""
