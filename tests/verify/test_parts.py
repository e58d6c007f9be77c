"""The parts of llmir verify that need no model: margins, divergences, thresholds, op errors."""

from __future__ import annotations

import numpy as np
import pytest

from llmir.errors import OptionError
from llmir.verify.divergence import Divergence, first_divergence, margin_of
from llmir.verify.ops import error_of
from llmir.verify.thresholds import EXACT, ROUNDED, broken, thresholds_for

F32 = np.float32


def test_the_first_divergence_and_its_margin() -> None:
    rows = np.array([[0, 3, 1], [2, 1.5, 0], [0, 0, 5]], F32)
    other = np.array([[0, 3, 1], [2, 1.75, 0], [0, 0, 5]], F32)
    assert first_divergence("p", [1, 0, 2], [1, 0, 2], rows, other) is None
    found = first_divergence("p", [1, 0, 2], [1, 1, 0], rows, other)
    assert found is not None
    assert (found.position, found.expected, found.found, found.margin) == (1, 0, 1, 0.5)
    assert found.forced_agrees  # the logits are not at fault: decoding was
    assert margin_of(np.array([4, 7, 7], F32)) == 0


def test_differences_and_rows_that_are_not_finite() -> None:
    found = Divergence()
    found.add(np.array([[1, 2]], F32), np.array([[1, 2.25]], F32), [0])
    assert found.max_abs_difference == 0.25
    assert found.rms_difference == pytest.approx(np.sqrt(0.25**2 / 2))
    found.add(np.array([[1, 2]], F32), np.array([[np.nan, 2]], F32), [1])
    assert found.num_not_finite == 1
    assert (found.max_abs_difference, found.mean_kl, found.agreement) == (np.inf, np.inf, 0.5)
    assert [r.split()[0] for r in broken(found, [], ROUNDED)] == ["1", "a", "mean", "top-1"]


def test_thresholds() -> None:
    assert thresholds_for(True, {"max_kl": None}) == EXACT
    assert thresholds_for(False, {"max_kl": 0.5}).max_kl == 0.5
    assert thresholds_for(False, {"max_kl": 0.5}).margin == ROUNDED.margin
    for name, value in (("margin", -1.0), ("min_top1", 1.5), ("max_kl", float("nan"))):
        with pytest.raises(OptionError, match=name.replace("_", "-")):
            thresholds_for(True, {name: value})
    same = Divergence()
    same.add(np.ones((1, 3), F32), np.ones((1, 3), F32), [0])
    rows = np.array([[1, 1.25]], F32)
    apart = first_divergence("p", [1], [0], rows, rows)
    assert apart is not None
    assert broken(same, [apart], ROUNDED) == []  # a tie
    assert broken(same, [apart], EXACT) == [
        "the greedy answer to 'p' differs from token 0 on, where the reference's margin is 0.25"
    ]


def test_the_error_of_an_op() -> None:
    expected = np.array([[1, -4], [2, 0]], F32)
    assert error_of(expected + F32(0.5), expected) == 0.125
    assert error_of(np.where(expected == 0, np.nan, expected), expected) == np.inf
    assert error_of(np.array([3, 4], np.int32), np.array([3, 5], np.int32)) == 0.5
    assert error_of(expected[:1], expected) == np.inf
