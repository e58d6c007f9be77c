"""Draws for the ops on rows of float32: norms, gates, RoPE, sums, the largest logits.

Shape legend: T tokens, D features, H heads, V elements of a row, L rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from llmir.dialect_ext.registry import get_op

from .draw import Array, Draw, Sample, Verdict, exact, f32, i32, near, normal, of_all_sizes

TOKENS = (1, 5, 34)
EPS = 1e-5


def add() -> Iterator[Draw]:
    yield from _of_two("add", lambda expected, a, b: 0.0)


def silu_mul() -> Iterator[Draw]:
    yield from _of_two("silu_mul", _gate_slack)


def gelu_mul() -> Iterator[Draw]:
    yield from _of_two("gelu_mul", _gate_slack)


def _gate_slack(expected: Array, gate: Array, up: Array) -> Array:
    # The sigmoid of a large negative number is lost in rounding, on some targets below 1e-38.
    return 5e-6 * np.abs(expected) + 1e-6 * np.abs(up) + 1e-30


def _of_two(op: str, slack: Callable[[Array, Array, Array], Array | float]) -> Iterator[Draw]:
    for columns in (37, 1536):

        def samples(rng: np.random.Generator, columns: int = columns) -> list[Sample]:
            found = []
            for tokens in TOKENS:
                a, b = of_all_sizes(rng, tokens, columns), normal(rng, tokens, columns)
                expected = get_op(op).reference(a, b)
                found.append(_sample([a, b], expected, slack(expected, a, b)))
            return found

        types = (f32(None, columns),) * 2
        yield Draw(op=op, dtype="f32", label=f"D={columns}", types=types, samples=samples)


def _sample(operands: list[Array], expected: Array, slack: Array | float) -> Sample:
    return Sample(operands=operands, judge=lambda results, _: near(results[0], expected, slack))


def rms_norm() -> Iterator[Draw]:
    for columns in (37, 576):

        def samples(rng: np.random.Generator, columns: int = columns) -> list[Sample]:
            found = []
            for rows in TOKENS:
                x, weight = of_all_sizes(rng, rows, columns), normal(rng, columns)
                expected = get_op("rms_norm").reference(x, weight, eps=EPS)
                found.append(_sample([x, weight], expected, 2e-5 * np.abs(expected) + 1e-7))
            return found

        yield Draw(
            op="rms_norm",
            dtype="f32",
            label=f"D={columns}",
            types=(f32(None, columns), f32(columns)),
            attrs={"eps": EPS},
            samples=samples,
        )


def rope() -> Iterator[Draw]:
    for heads, dim in ((3, 16), (9, 64)):

        def samples(rng: np.random.Generator, heads: int = heads, dim: int = dim) -> list[Sample]:
            found = []
            for tokens in TOKENS:
                x, table = normal(rng, tokens, heads, dim), rope_table(rng, dim)
                positions = rng.integers(0, len(table), tokens).astype(np.int32)
                expected = get_op("rope").reference(x, positions, table)
                operands = [x, positions, table]
                found.append(_sample(operands, expected, 1e-6 * (1 + np.abs(expected))))
            return found

        yield Draw(
            op="rope",
            dtype="f32",
            label=f"H={heads} D={dim}",
            types=(f32(None, heads, dim), i32(None), f32(ROPE_POSITIONS, dim)),
            samples=samples,
        )


ROPE_POSITIONS = 50


def rope_table(rng: np.random.Generator, dim: int) -> Array:
    """Cosines and sines of angles at random."""
    angles = rng.uniform(0, 7, (ROPE_POSITIONS, dim // 2))
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def logits(rng: np.random.Generator, rows: int, columns: int) -> Array:
    """Rows of logits: with equal ones, a NaN, infinities, and one of nothing but -inf."""
    x = normal(rng, rows, columns) * 5
    x[0, columns // 2 :] = x[0, : columns - columns // 2]
    for row, value in zip(range(2, rows), (np.nan, np.inf, -np.inf), strict=False):
        x[row, rng.integers(0, columns)] = value
    if rows > 6:
        x[5] = -np.inf
    return x


def argmax() -> Iterator[Draw]:
    for columns in (37, 1000):

        def samples(rng: np.random.Generator, columns: int = columns) -> list[Sample]:
            found = []
            for rows in TOKENS:
                x = logits(rng, rows, columns)
                expected = get_op("argmax").reference(x)
                found.append(Sample(operands=[x], judge=_exactly(expected)))
            return found

        types = (f32(None, columns),)
        yield Draw(op="argmax", dtype="f32", label=f"V={columns}", types=types, samples=samples)


def _exactly(expected: Array) -> Callable[..., Verdict]:
    return lambda results, _: exact(results[0], expected)


def topk() -> Iterator[Draw]:
    for columns, k in ((37, 1), (1000, 64)):

        def samples(rng: np.random.Generator, columns: int = columns, k: int = k) -> list[Sample]:
            found = []
            for rows in TOKENS:
                x = logits(rng, rows, columns)
                expected = get_op("topk").reference(x, k=k)
                found.append(Sample(operands=[x], judge=judge_topk(*expected)))
            return found

        yield Draw(
            op="topk",
            dtype="f32",
            label=f"V={columns} k={k}",
            types=(f32(None, columns),),
            attrs={"k": k},
            samples=samples,
        )


def judge_topk(values: Array, ids: Array, weights: Array) -> Callable[..., Verdict]:
    """Of logits given: the same choice, and the weight of all up to rounding."""

    def judge(results: list[Array], _: bool) -> Verdict:
        verdict = exact(results[0], values).worse(exact(results[1], ids))
        return verdict.worse(near(results[2], weights, 1e-5 * np.abs(weights)))

    return judge
