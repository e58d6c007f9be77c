"""llm.topk: the k largest elements of each row, and the weight of all of it beside the largest.

    values[l, :] = the k largest x[l, v], falling
    ids[l, :]    = their v, the lower first among equals
    weights[l]   = Σ_v e^(x[l, v] - values[l, 0])
    values and weights NaN, ids -1 where the largest is not finite, or NaN is in the row

Shape legend: L rows, V elements of a row.  Of a row of logits, e^(x - values[l, 0]) / weights[l]
are the probabilities; values[l, 0] + log weights[l] is the log-sum-exp.
"""

from __future__ import annotations

import numpy as np

from llmir.dialect_ext.base import Array, Attribute, Call, Lowering, Op, Operand, everywhere
from llmir.dialect_ext.topk_kernels import topk_kernels
from llmir.dialect_ext.topk_portable import emit_topk
from llmir.dialect_ext.types import Dim, TensorType, is_static


class Topk(Op):
    """x f32[L, V] → values f32[L, k], ids i32[L, k], weights f32[L].  1 <= k <= V."""

    name = "topk"
    num_results = 3
    operands = (Operand(name="x", dims=("L", "V"), dtypes=("f32",)),)
    attributes = (Attribute(name="k", kind=int),)

    def check(self, call: Call) -> None:
        x = call.type_of("x")
        self.expect(is_static(x.shape[1]), f"V must be static, got {x}")
        self.expect(*k_fits(int(call.attrs["k"]), int(x.shape[1] or 0)))

    def result_types(self, call: Call) -> tuple[TensorType, ...]:
        return topk_types(call.type_of("x").shape[0], int(call.attrs["k"]))

    def reference(self, x: Array, *, k: int) -> tuple[Array, ...]:
        ids = np.argsort(-x, axis=1, kind="stable")[:, :k]
        most = x.max(axis=1, keepdims=True)  # NaN of a row with NaN
        good = np.isfinite(most)
        with np.errstate(invalid="ignore"):
            weights = np.exp(x.astype(np.float64) - most).sum(axis=1)
        nan = np.float32(np.nan)
        return (
            np.where(good, np.take_along_axis(x, ids, axis=1), nan),
            np.where(good, ids, -1).astype(np.int32),
            np.where(good[:, 0], weights, nan).astype(np.float32),
        )

    @property
    def lowerings(self) -> tuple[Lowering, ...]:
        portable = Lowering(provider="portable", supports=everywhere, emit=emit_topk)
        return (*topk_kernels(), portable)


def k_fits(k: int, columns: int) -> tuple[bool, str]:
    """Whether so many can be taken of a row, and what to say if not."""
    return 1 <= k <= columns, f"k must be 1 to {columns}, the length of a row; got {k}"


def topk_types(rows: Dim, k: int) -> tuple[TensorType, ...]:
    """Of the three results."""
    lists = (rows, k)
    return TensorType(lists, "f32"), TensorType(lists, "i32"), TensorType((rows,), "f32")
