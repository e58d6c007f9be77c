"""One token at random from one row of logits: temperature, min_p, top_k, top_p.

Shape legend: V vocabulary, C candidates.

A row of a real vocabulary is large beside what is left of it: every pass over all of it counts.
So the only ones are those that the definition needs, the weights and their sum; the nucleus is
looked for among the few tokens above a threshold.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llmir.engine.sampling_params import SamplingParams
from llmir.runtime.base import F32

I64 = NDArray[np.int64]

MIN_TEMPERATURE = 1e-20
"""Below this a float32 quotient is 0 or infinite anyway."""

NUCLEUS_THRESHOLDS = (2.0**-12, 2.0**-17, 0.0)
"""Weights above which the nucleus is looked for, in turn; the likeliest token's is 1."""

FLAT = 4.0
"""A sum of weights from which on the first of them is seldom low enough."""

BIN_SHIFT = 17
"""Bits of a float32 that its bin leaves out: 64 bins for each power of two."""

BLOCK = 256
"""Candidates whose weights are summed at once, before a token is looked for in one block."""


def draw(row_V: F32, params: SamplingParams, uniform: float, weights_V: F32 | None = None) -> int:
    """The token that `uniform` in [0, 1) picks after temperature, min_p, top_k and top_p.

    weights_V: what `weigh` gives for the row, if that is known.
    """
    ids_C, weights_C = candidates(row_V, params, weights_V)
    chosen = pick(weights_C, uniform)
    return chosen if ids_C is None else int(ids_C[chosen])


def candidates(
    row_V: F32, params: SamplingParams, weights_V: F32 | None = None
) -> tuple[I64 | None, F32]:
    """Tokens that may be drawn (None: all) and their weights, which are not normalised; the best
    has 1."""
    if weights_V is None:
        weights_V = np.empty_like(row_V)
        weigh(row_V, params.temperature, weights_V)
    ids_C: I64 | None = None
    if params.min_p > 0.0:
        ids_C = np.flatnonzero(weights_V >= params.min_p)
    if 0 < params.top_k < (len(row_V) if ids_C is None else len(ids_C)):
        ids_C = _among(ids_C, top_ids(_of(row_V, ids_C), params.top_k))
    if params.top_p < 1.0:
        ids_C = _among(ids_C, nucleus(_of(row_V, ids_C), _of(weights_V, ids_C), params.top_p))
    return ids_C, _of(weights_V, ids_C)


def weigh(row_V: F32, temperature: float, out_V: F32, largest: float | None = None) -> None:
    """Write e^((logit - largest) / temperature) of every token to `out_V`.

    largest: the row's largest logit, if that is known.
    """
    if largest is None:
        largest = row_V.max()
    with np.errstate(over="ignore"):  # far below the best: -inf, whose weight is 0
        # The maximum is subtracted first, so that no exponent is above 0.
        np.subtract(row_V, np.float32(largest), out=out_V)
        np.divide(out_V, np.float32(max(temperature, MIN_TEMPERATURE)), out=out_V)
    np.exp(out_V, out=out_V)


def nucleus(logits_C: F32, weights_C: F32, top_p: float) -> I64:
    """Indices, rising, of the fewest likeliest candidates whose share of all weight is `top_p`.

    Of equal logits the lower indices are taken first.
    """
    total = float(weights_C.sum(dtype=np.float64))
    wanted = top_p * total
    for threshold in NUCLEUS_THRESHOLDS[total > FLAT :]:
        # All above it come before all others, so that the nucleus is among them if they weigh
        # enough.
        ids_A = np.flatnonzero(weights_C > threshold)
        weights_A = weights_C[ids_A]
        # A positive float's bits, read as an integer, keep its order.
        bins_A = (weights_A.view(np.int32) >> BIN_SHIFT) - (_bits(threshold) >> BIN_SHIFT)
        # [b] what the bins from the top down to b weigh
        reached_B = np.cumsum(np.bincount(bins_A, weights_A)[::-1])[::-1]
        if reached_B[0] >= wanted:
            break
    # The bin where the nucleus ends: of it, the likeliest; of those above it, all.
    edge = int(np.flatnonzero(reached_B >= wanted)[-1]) if reached_B[0] >= wanted else 0
    missing = wanted - (reached_B[edge + 1] if edge + 1 < len(reached_B) else 0.0)
    ids_E = ids_A[bins_A == edge]
    order = ids_E[np.argsort(-logits_C[ids_E], kind="stable")]
    cumulative = np.cumsum(weights_C[order], dtype=np.float64)
    last = order[: int(np.searchsorted(cumulative, missing, side="left")) + 1]
    return np.sort(np.concatenate([ids_A[bins_A > edge], last]))


def _bits(value: float) -> int:
    return int(np.float32(value).view(np.int32))


def top_ids(values: F32, k: int) -> I64:
    """Indices of the k largest values, largest first, lower indices first among equals."""
    if k >= len(values):
        return np.argsort(-values, kind="stable")
    threshold = np.partition(values, len(values) - k)[len(values) - k]
    above = np.flatnonzero(values > threshold)
    equal = np.flatnonzero(values == threshold)[: k - len(above)]
    chosen = np.concatenate([above, equal])
    return chosen[np.argsort(-values[chosen], kind="stable")]


def pick(weights_C: F32, uniform: float) -> int:
    """The index on which `uniform` falls when the weights lie side by side from 0 to 1."""
    starts = np.arange(0, len(weights_C), BLOCK)
    ends = np.cumsum(np.add.reduceat(weights_C, starts, dtype=np.float64))
    point = uniform * ends[-1]
    block = int(np.searchsorted(ends, point, side="right"))
    if block < len(ends):
        first = block * BLOCK
        inside = np.cumsum(weights_C[first : first + BLOCK], dtype=np.float64)
        inside += ends[block - 1] if block else 0.0
        place = int(np.searchsorted(inside, point, side="right"))
        if place < len(inside):
            return first + place
    # A sum was rounded down to the point or below it: the last that has any weight before there.
    return int(np.flatnonzero(weights_C[: (block + 1) * BLOCK])[-1])


def _of(values_V: F32, ids_C: I64 | None) -> F32:
    return values_V if ids_C is None else values_V[ids_C]


def _among(ids_C: I64 | None, chosen: I64) -> I64:
    return chosen if ids_C is None else ids_C[chosen]
