"""How far one engine's distributions are from another's, over teacher-forced positions.

Shape legend: T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
_ROWS = 64  # in float64 at a time


class Divergence:
    """Gathers windows of logits beside the reference's; the properties are over all of them."""

    def __init__(self) -> None:
        self._kl: list[F64] = []
        self._same: list[NDArray[np.bool_]] = []
        self._scores: list[F64] = []

    def add(
        self,
        expected_TV: NDArray[np.float32],
        found_TV: NDArray[np.float32],
        next_ids: Sequence[int],
    ) -> None:
        """Take the next T positions; next_ids: the text's token after each of them."""
        assert expected_TV.shape == found_TV.shape
        assert len(expected_TV) == len(next_ids)
        for at in range(0, len(next_ids), _ROWS):
            rows = slice(at, at + _ROWS)
            p_TV, q_TV = log_softmax(expected_TV[rows]), log_softmax(found_TV[rows])
            self._kl.append((np.exp(p_TV) * (p_TV - q_TV)).sum(1))
            self._same.append(p_TV.argmax(1) == q_TV.argmax(1))
            self._scores.append(q_TV[np.arange(len(q_TV)), list(next_ids[rows])])

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
    def perplexity(self) -> float:
        return float(np.exp(-np.concatenate(self._scores).mean()))


def log_softmax(logits_TV: NDArray[np.float32]) -> F64:
    """Natural logarithms of the probabilities, float64 [T, V]."""
    shifted_TV = logits_TV.astype(np.float64) - logits_TV.max(1, keepdims=True)
    return np.asarray(shifted_TV - np.log(np.exp(shifted_TV).sum(1, keepdims=True)))
