"""How far one side's distributions are from another's: the formulas of `llmir verify`.

Shape legend: T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmir.runtime.base import F32

F64 = NDArray[np.float64]
_ROWS = 64  # in float64 at a time


class Divergence:
    """Gathers windows of logits beside the reference's; the properties are over all of them.

    A row with a number that is not finite counts as infinitely far away: it is part of
    `num_not_finite`, no choice of it agrees, and its KL and difference are infinite.
    """

    def __init__(self) -> None:
        self._kl: list[F64] = []
        self._same: list[NDArray[np.bool_]] = []
        self._scores: list[F64] = []
        self._largest: list[F64] = []
        self._squares = 0.0
        self._elements = 0
        self.num_not_finite = 0

    def add(self, expected_TV: F32, found_TV: F32, next_ids: Sequence[int]) -> None:
        """Take the next T positions; next_ids: the text's token after each of them."""
        assert expected_TV.shape == found_TV.shape
        assert len(expected_TV) == len(next_ids)
        for at in range(0, len(next_ids), _ROWS):
            rows = slice(at, at + _ROWS)
            self._add(expected_TV[rows], found_TV[rows], next_ids[rows])

    def _add(self, expected_TV: F32, found_TV: F32, next_ids: Sequence[int]) -> None:
        good = np.isfinite(expected_TV).all(axis=1) & np.isfinite(found_TV).all(axis=1)
        bad = np.asarray(~good)
        p_TV, q_TV = (
            log_softmax(np.where(bad[:, None], np.float32(0), x)) for x in (expected_TV, found_TV)
        )
        difference_TV = np.where(bad[:, None], 0.0, found_TV.astype(np.float64) - expected_TV)
        self._kl.append(np.where(bad, np.inf, (np.exp(p_TV) * (p_TV - q_TV)).sum(1)))
        self._same.append((p_TV.argmax(1) == q_TV.argmax(1)) & ~bad)
        self._scores.append(np.where(bad, -np.inf, q_TV[np.arange(len(q_TV)), list(next_ids)]))
        self._largest.append(np.where(bad, np.inf, np.abs(difference_TV).max(1)))
        self._squares += float((difference_TV**2).sum())
        self._elements += difference_TV.size
        self.num_not_finite += int(bad.sum())

    @property
    def num_positions(self) -> int:
        return sum(map(len, self._kl))

    @property
    def mean_kl(self) -> float:
        """Mean over the positions of Σ p · (log p - log q), in nats; p the reference's."""
        return float(np.concatenate(self._kl).mean())

    @property
    def kl_p99(self) -> float:
        """What 99 % of the positions stay below."""
        return float(np.quantile(np.concatenate(self._kl), 0.99))

    @property
    def agreement(self) -> float:
        """Share of the positions where the likeliest token is the reference's."""
        return float(np.concatenate(self._same).mean())

    @property
    def max_abs_difference(self) -> float:
        """The largest |found - expected| of a logit."""
        return float(np.concatenate(self._largest).max())

    @property
    def rms_difference(self) -> float:
        """The root of the mean square of found - expected, over all logits of finite rows."""
        return float(np.sqrt(self._squares / self._elements))

    @property
    def perplexity(self) -> float:
        return float(np.exp(-np.concatenate(self._scores).mean()))


def log_softmax(logits_TV: F32) -> F64:
    """Natural logarithms of the probabilities, float64 [T, V]."""
    shifted_TV = logits_TV.astype(np.float64) - logits_TV.max(1, keepdims=True)
    return np.asarray(shifted_TV - np.log(np.exp(shifted_TV).sum(1, keepdims=True)))


def margin_of(row_V: F32) -> float:
    """The difference between the two largest logits of a row: 0 where two are the largest."""
    second, best = np.partition(row_V.astype(np.float64), -2)[-2:]
    return float(best - second)


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstDivergence:
    """Where two greedy answers to a prompt first differ.

    position:          tokens of the answer before it, which are the same
    expected, found:   the token ids there
    margin:            between the reference's two largest logits there
    forced_agrees:     given the same tokens, both find the same token likeliest there: what they
                       disagree on is then not the logits of `step` but how they were reached:
                       decoding token by token, or choosing on the device
    """

    prompt: str
    position: int
    expected: int
    found: int
    margin: float
    forced_agrees: bool


def first_divergence(
    prompt: str,
    expected: Sequence[int],
    found: Sequence[int],
    expected_TV: F32,
    found_TV: F32,
) -> FirstDivergence | None:
    """Compare two greedy answers, up to the shorter; None if they are the same.

    expected_TV, found_TV: teacher-forced logits of the reference's answer, a row per token
    """
    for i, (token, other) in enumerate(zip(expected, found, strict=False)):
        if token != other:
            return FirstDivergence(
                prompt=prompt,
                position=i,
                expected=token,
                found=other,
                margin=margin_of(expected_TV[i]),
                forced_agrees=bool(expected_TV[i].argmax() == found_TV[i].argmax()),
            )
    return None
