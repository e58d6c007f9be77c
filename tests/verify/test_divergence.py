"""The divergence's own arithmetic, on distributions that can be written down."""

from __future__ import annotations

import math

import numpy as np
import pytest

from llmir.verify.divergence import Divergence


def test_known_distributions_over_several_windows() -> None:
    p = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]], np.float32))
    q = np.log(np.array([[0.25, 0.5, 0.25], [0.1, 0.8, 0.1]], np.float32))
    found = Divergence()
    found.add(p[:1], q[:1] + 7, [1])  # a constant on all logits changes nothing
    found.add(p[1:], q[1:], [0])
    first = 0.5 * math.log(0.5 / 0.25) + 0.25 * math.log(0.25 / 0.5)
    assert found.num_positions == 2
    assert found.mean_kl == pytest.approx(first / 2, rel=1e-6)
    assert found.kl_p99 == pytest.approx(0.99 * first, rel=1e-6)
    assert found.agreement == 0.5
    assert found.perplexity == pytest.approx(math.exp(-(math.log(0.5) + math.log(0.1)) / 2))


def test_more_rows_than_are_taken_at_a_time() -> None:
    rng = np.random.default_rng(0)
    p, q = rng.normal(size=(2, 150, 11)).astype(np.float32)
    ids = rng.integers(0, 11, 150).tolist()
    whole, rows = Divergence(), Divergence()
    whole.add(p, q, ids)
    for i in range(150):
        rows.add(p[i : i + 1], q[i : i + 1], ids[i : i + 1])
    assert whole.mean_kl == pytest.approx(rows.mean_kl)
    assert whole.agreement == rows.agreement
    assert whole.perplexity == pytest.approx(rows.perplexity)
    same = Divergence()
    same.add(p, p, ids)
    assert (same.mean_kl, same.agreement) == (0, 1)
