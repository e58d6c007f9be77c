"""A provider of somebody else's whose silu_mul is wrong: it adds a constant to the gate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from llmir.dialect_ext import registry
from llmir.dialect_ext.base import Call, Lowering
from llmir.dialect_ext.registry import get_op
from llmir.targets import Target


@contextmanager
def wrong_silu(kind: str) -> Iterator[dict[str, list[str]]]:
    """Registers it for targets of a kind, for a while; gives the op priority that takes it."""
    own = get_op("silu_mul").lowerings
    portable = next(lowering for lowering in own if lowering.provider == "portable")

    def supports(call: Call, target: Target) -> str | None:
        return None if target.kind == kind else f"wrong for {kind} only"

    def emit(call: Call, symbol: str) -> str:
        text = portable.emit(call, symbol)
        assert text.count("arith.constant 1.0") == 1  # of 1 / (1 + e^-gate)
        return text.replace("arith.constant 1.0", "arith.constant 1.25")

    lowerings = registry._lowerings()["silu_mul"]
    before = list(lowerings)
    registry.register_lowering("silu_mul", Lowering(provider="wrong", supports=supports, emit=emit))
    try:
        yield {"silu_mul": ["wrong", "portable"]}
    finally:
        lowerings[:] = before
