"""The portable form of ops that make one tensor of two of the same type, element by element."""

from __future__ import annotations

from llmir.dialect_ext.base import Call
from llmir.dialect_ext.types import is_static


def emit_elementwise(call: Call, symbol: str, body: str, before: str = "") -> str:
    """The function of an op on two f32 tensors of rank 2.

    Args:
        body: MLIR that defines %result f32 of %left and %right, an element of each operand
        before: MLIR that defines what the body takes from outside
    """
    t = call.results[0]
    (left, left_type), (right, right_type) = call.present
    dims = [f"%d{i}" for i, d in enumerate(t.shape) if not is_static(d)]
    reads = "\n".join(
        f"  %i{i} = arith.constant {i} : index\n  %d{i} = tensor.dim %{left}, %i{i} : {t}"
        for i, d in enumerate(t.shape)
        if not is_static(d)
    )
    return f"""
{call.signature(symbol)} {{
{reads}
{before}
  %empty = tensor.empty({", ".join(dims)}) : {t}
  %y = linalg.generic {{
      indexing_maps = [affine_map<(t, d) -> (t, d)>, affine_map<(t, d) -> (t, d)>,
                       affine_map<(t, d) -> (t, d)>],
      iterator_types = ["parallel", "parallel"]
  }} ins(%{left}, %{right} : {left_type}, {right_type}) outs(%empty : {t}) {{
  ^bb0(%left: f32, %right: f32, %out: f32):
{body}
    linalg.yield %result : f32
  }} -> {t}
  return %y : {t}
}}
"""
