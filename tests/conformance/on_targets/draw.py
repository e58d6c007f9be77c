"""What is drawn for an op: its static types, operands at random, and what its results may be.

A draw is one static signature of an op.  It gives several samples, of different dynamic sizes;
a sample knows its operands as a device holds them (bf16 as its bits, uint16) and judges results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmir.dialect_ext.base import AttrValue, Call
from llmir.dialect_ext.registry import get_op
from llmir.dialect_ext.types import TensorType

Array = np.ndarray[Any, Any]
# bf16 has no dtype in numpy: its bits are uint16.
NUMPY = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16, "i32": np.int32, "i8": np.int8}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How far results are from the reference.

    error:    the largest difference, of the largest number that the reference gives
    share:    the largest difference of an element, of what is allowed there; more than 1 fails
    problem:  what is wrong besides, "" if nothing is
    """

    error: float = 0.0
    share: float = 0.0
    problem: str = ""

    @property
    def passed(self) -> bool:
        return not self.problem and self.share <= 1

    def worse(self, other: Verdict) -> Verdict:
        """The larger numbers of two, and the first problem."""
        return Verdict(
            error=max(self.error, other.error),
            share=max(self.share, other.share),
            problem=self.problem or other.problem,
        )


Judge = Callable[[Sequence[Array], bool], Verdict]
"""(results, whether a kernel gave them) → how they are."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    operands: Sequence[Array | None]
    judge: Judge = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One signature of an op.

    dtype:    what the table calls it: a weight format, the KV pages' format, "f32"
    label:    what else is special about it
    samples:  draws the operands
    """

    op: str
    dtype: str
    label: str
    types: tuple[TensorType | None, ...]
    attrs: Mapping[str, AttrValue] = field(default_factory=dict)
    samples: Callable[[np.random.Generator], list[Sample]] = field(repr=False)

    @property
    def name(self) -> str:
        return f"{self.op} {self.dtype} {self.label}".rstrip()

    @property
    def stored_as(self) -> str:
        """The dtype without the precision of the activations."""
        return self.dtype.partition(" × ")[0]

    @property
    def call(self) -> Call:
        """Raises VerifyError."""
        return get_op(self.op).verify(self.types, self.attrs)


def near(y: Array, expected: Array, slack: Array | float) -> Verdict:
    """A verdict on floats; `slack` is what each element may be off by."""
    if y.shape != expected.shape:
        return Verdict(problem=f"shape {y.shape}, expected {expected.shape}")
    if not y.size:
        return Verdict()
    expected = expected.astype(np.float64)
    same = (y == expected) | (np.isnan(y) & np.isnan(expected))
    finite = np.isfinite(expected)
    if not (np.isfinite(y) | same).all():
        return Verdict(
            problem=f"{(~(np.isfinite(y) | same)).sum()} of {y.size} are NaN or infinite"
        )
    if not (finite | same).all():
        return Verdict(problem="finite where the reference is NaN or infinite")
    with np.errstate(invalid="ignore"):
        off = np.where(same, 0, np.abs(y - expected))
    largest = np.abs(expected[finite]).max(initial=0) or 1.0
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.where(off == 0, 0, off / np.broadcast_to(slack, off.shape))
    return Verdict(error=float(off.max() / largest), share=float(shares.max()))


def exact(y: Array, expected: Array) -> Verdict:
    """A verdict where nothing may differ; any NaN is as good as another."""
    if y.dtype.kind == "f" and y.shape == expected.shape:
        return near(y, expected, 0.0)
    if y.shape != expected.shape:
        return Verdict(problem=f"shape {y.shape}, expected {expected.shape}")
    wrong = int((y != expected).sum())
    return Verdict(problem=f"{wrong} of {y.size} differ") if wrong else Verdict()


def f32(*shape: int | None) -> TensorType:
    return TensorType(shape, "f32")


def i32(*shape: int | None) -> TensorType:
    return TensorType(shape, "i32")


def normal(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape, dtype=np.float32)


def of_all_sizes(rng: np.random.Generator, tokens: int, columns: int) -> Array:
    """Rows that differ in size by powers of two; one of them is zeros."""
    x = np.ldexp(normal(rng, tokens, columns), rng.integers(-6, 7, (tokens, 1), np.int32))
    x[tokens // 2 : tokens // 2 + (tokens > 2)] = 0
    return x
