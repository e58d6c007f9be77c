"""The form of a product with the rows of a weight that IREE compiles for every target.

    y[t, n] = Σ_k x[t, k] · w[n, k] + bias[n]

Shape legend: T tokens, N rows of the weight, K columns.

An all-parallel generic over (t, n) whose body loops over K with scf.for and reads
by tensor.extract: on a GPU one thread per element of y.  Nothing is materialised and
nothing needs shared memory, which is where reductions in linalg fail for Metal and
Vulkan; and an element never sees the others, so rows are bit-equal in any batch.
It is slow (about 4 GFLOP/s on two CPU threads): CPUs have tiled_rows.
"""

from __future__ import annotations

from llmir.dialect_ext.base import Call
from llmir.dialect_ext.types import is_static


def emit_scalar_rows(call: Call, symbol: str, sum_over_k: str) -> str:
    """A function that computes y f32[T, N] from x f32[T, K], weight operands and bias?.

    Args:
        sum_over_k:  MLIR that defines %acc f32 from the operands, %t, %n, %zero, %c0, %c1
    """
    x, y, bias = call.type_of("x"), call.results[0], call.operand("bias")
    dyn = "" if is_static(y.shape[0]) else "%size"
    add_bias = (
        ""
        if bias is None
        else f"""
    %bias_n = tensor.extract %bias[%n] : {bias}
    %total = arith.addf %acc, %bias_n : f32"""
    )
    return f"""
{call.signature(symbol)} {{
  %c0 = arith.constant 0 : index
  %c1 = arith.constant 1 : index
  %zero = arith.constant 0.0 : f32
  %size = tensor.dim %x, %c0 : {x}
  %empty = tensor.empty({dyn}) : {y}
  %y = linalg.generic {{
      indexing_maps = [affine_map<(t, n) -> (t, n)>], iterator_types = ["parallel", "parallel"]
  }} outs(%empty : {y}) {{
  ^bb0(%o: f32):
    %t = linalg.index 0 : index
    %n = linalg.index 1 : index
{sum_over_k}{add_bias}
    linalg.yield %{"acc" if bias is None else "total"} : f32
  }} -> {y}
  return %y : {y}
}}
"""
