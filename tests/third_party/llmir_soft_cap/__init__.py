"""A package of somebody else's: it adds an op, and a provider for one of llmir's own.

Nothing in llmir knows it; the entry points in its dist-info are all there is.
"""

from __future__ import annotations

from collections.abc import Iterator

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
from llmir.dialect_ext.registry import get_op
from llmir.dialect_ext.types import TensorType
from llmir.targets import Target


class SoftCap(Op):
    """x f32[T, D], cap → cap * tanh(x / cap), as Gemma 2 caps its logits."""

    name = "soft_cap"
    operands = (Operand(name="x", dims=("T", "D"), dtypes=("f32",)),)
    attributes = (Attribute(name="cap", kind=float),)

    def result_types(self, call: Call) -> tuple[TensorType, ...]:
        x = call.type_of("x")
        return (x,)

    def reference(self, x: Array, *, cap: float) -> Array:
        return (cap * np.tanh(x / cap)).astype(np.float32)

    @property
    def lowerings(self) -> tuple[Lowering, ...]:
        return (Lowering(provider="portable", supports=everywhere, emit=_emit),)


def _emit(call: Call, symbol: str) -> str:
    x = call.type_of("x")
    return f"""
{call.signature(symbol)} {{
  %c0 = arith.constant 0 : index
  %cap = arith.constant {literal(call.attrs["cap"])} : f32
  %t = tensor.dim %x, %c0 : {x}
  %empty = tensor.empty(%t) : {x}
  %y = linalg.generic {{
      indexing_maps = [affine_map<(t, d) -> (t, d)>, affine_map<(t, d) -> (t, d)>],
      iterator_types = ["parallel", "parallel"]
  }} ins(%x : {x}) outs(%empty : {x}) {{
  ^bb0(%v: f32, %o: f32):
    %q = arith.divf %v, %cap : f32
    %h = math.tanh %q : f32
    %r = arith.mulf %h, %cap : f32
    linalg.yield %r : f32
  }} -> {x}
  return %y : {x}
}}
"""


def providers() -> Iterator[tuple[str, Lowering]]:
    """A provider of silu_mul for CPUs: the portable form under another name."""
    own = get_op("silu_mul").lowerings
    portable = next(lowering for lowering in own if lowering.provider == "portable")

    def cpus(call: Call, target: Target) -> str | None:
        return None if target.is_cpu else "made for CPUs"

    yield "silu_mul", Lowering(provider="example", supports=cpus, emit=portable.emit)
