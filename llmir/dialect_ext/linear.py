"""llm.linear: a product with a float weight, summed in float32.

    y[t, n] = Σ_k x[t, k] * weight[n, k] + bias[n]

Shape legend: T tokens, N output features, K input features.  A 16-bit weight is
widened in registers, as it is read.  How x is rounded before the product is `activations`,
fixed when the model is compiled (activations.py).
"""

from __future__ import annotations

import numpy as np

from llmir.dialect_ext.activations import activations_are_known, only_float32
from llmir.dialect_ext.base import Array, Attribute, Call, Lowering, Op, Operand
from llmir.dialect_ext.packed_matmul import packed_lowerings, packing_refusal
from llmir.dialect_ext.scalar_rows import emit_scalar_rows
from llmir.dialect_ext.spirv_matmul import linear_lowering
from llmir.dialect_ext.tiled_rows import Tile, emit_rows, lanes_for, multiply_add
from llmir.dialect_ext.types import TensorType, is_static
from llmir.dialect_ext.whole_words import ends_within_a_word
from llmir.targets import Target


class Linear(Op):
    """x f32[T, K], weight f32|bf16|f16[N, K], bias f32[N]? → f32[T, N]."""

    name = "linear"
    operands = (
        Operand(name="x", dims=("T", "K"), dtypes=("f32",)),
        Operand(name="weight", dims=("N", "K"), dtypes=("f32", "bf16", "f16")),
        Operand(name="bias", dims=("N",), dtypes=("f32",), optional=True),
    )
    attributes = (Attribute(name="activations", kind=str, default="f32"),)

    def check(self, call: Call) -> None:
        self.expect(*activations_are_known(call))
        x = call.type_of("x")
        weight = call.type_of("weight")
        self.expect(all(map(is_static, weight.shape)), f"weight must be static, got {weight}")
        self.expect(
            x.shape[1] == weight.shape[1],
            f"operand 'x' must have K = {weight.shape[1]} static, got {x}",
        )

    def result_types(self, call: Call) -> tuple[TensorType, ...]:
        x = call.type_of("x")
        weight = call.type_of("weight")
        return (TensorType((x.shape[0], weight.shape[0]), "f32"),)

    def reference(
        self, x: Array, weight: Array, bias: Array | None, *, activations: str = "f32"
    ) -> Array:
        """With activations not rounded: what every precision approximates."""
        y = x.astype(np.float64) @ weight.astype(np.float64).T
        return (y if bias is None else y + bias).astype(np.float32)

    @property
    def lowerings(self) -> tuple[Lowering, ...]:
        return (
            *packed_lowerings(_packed_supports),
            linear_lowering(),
            Lowering(
                provider="portable", variant="tiled", supports=_tiled_supports, emit=_emit_tiled
            ),
            Lowering(
                provider="portable",
                variant="scalar",
                supports=_scalar_supports,
                emit=_emit_scalar,
            ),
        )


def _packed_supports(call: Call, target: Target) -> str | None:
    """Of the kernels that read packed weights (packed_matmul.py)."""
    cols = call.type_of("weight").shape[1]
    return packing_refusal(call, target, cols, str(call.attrs["activations"]))


def _tiled_supports(call: Call, target: Target) -> str | None:
    if not target.is_cpu:
        return "register tiles of vectors are for CPUs"
    if reason := only_float32(call, target):
        return reason
    k = call.type_of("weight").shape[1]
    return f"K = {k} is not a multiple of 4" if lanes_for(k) is None else None


def _scalar_supports(call: Call, target: Target) -> str | None:
    if reason := only_float32(call, target):
        return reason
    # Seen with Mesa 22.3's llvmpipe, without any error; bf16 and f32 are right there.
    if target.kind == "vulkan" and call.type_of("weight").dtype == "f16":
        return "f16 weights compute wrong results on a Vulkan driver; store f32 or bf16"
    return ends_within_a_word(call.type_of("weight"), target)


def _emit_tiled(call: Call, symbol: str) -> str:
    """See tiled_rows."""
    weight = call.type_of("weight")
    lanes = lanes_for(weight.shape[1])
    assert lanes is not None
    constants = f"""
    %columns = arith.constant {weight.shape[1]} : index
    %lanes = arith.constant {lanes} : index
    %no_weight = arith.constant 0.0 : {weight.dtype}
"""
    return emit_rows(
        call, symbol, lanes=lanes, constants=constants, sum_over_k=lambda t: _sum_over_k(call, t)
    )


def _sum_over_k(call: Call, tile: Tile) -> str:
    x, weight = TensorType((None, call.type_of("x").shape[1]), "f32"), call.type_of("weight")
    stored = tile.vec(weight.dtype)
    wide = weight.dtype == "f32"
    widen = "" if wide else f"%w = arith.extf %stored : {stored} to {tile.vec('f32')}"
    return f"""
    %acc = scf.for %k = %c0 to %columns step %lanes iter_args(%acc_k = %init) -> ({tile.acc}) {{
      %stored = vector.transfer_read %weight_t[%n, %k], %no_weight {{in_bounds = [true, true]}}
          : {weight}, {stored}
      {widen}
{multiply_add(tile, x, w="stored" if wide else "w", k="k", acc="acc_k", out="acc_next")}
      scf.yield %acc_next : {tile.acc}
    }}
"""


def _emit_scalar(call: Call, symbol: str) -> str:
    """See scalar_rows."""
    x, weight = call.type_of("x"), call.type_of("weight")
    wide = weight.dtype == "f32"
    return emit_scalar_rows(
        call,
        symbol,
        f"""
    %columns = arith.constant {weight.shape[1]} : index
    %acc = scf.for %k = %c0 to %columns step %c1 iter_args(%acc_k = %zero) -> (f32) {{
      %x_k = tensor.extract %x[%t, %k] : {x}
      %stored = tensor.extract %weight[%n, %k] : {weight}
      {"" if wide else f"%w = arith.extf %stored : {weight.dtype} to f32"}
      %p = arith.mulf %x_k, %{"stored" if wide else "w"} : f32
      %acc_next = arith.addf %acc_k, %p : f32
      scf.yield %acc_next : f32
    }}""",
    )
