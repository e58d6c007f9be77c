"""When requests are sent: means, spreads, seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from llmir.bench.serve.arrivals import PROCESSES, Process, arrival_times
from llmir.errors import OptionError


def times(
    count: int, rate: float, process: Process = "gamma", burstiness: float = 1.0, seed: int = 0
) -> np.ndarray:
    return arrival_times(count, rate, process, burstiness, np.random.default_rng(seed))


@pytest.mark.parametrize("process", PROCESSES)
def test_the_last_request_arrives_at_count_over_rate(process: Process) -> None:
    at = times(1000, 8.0, process)
    assert len(at) == 1000
    assert (np.diff(at) >= 0).all()
    assert at[0] >= 0
    assert at[-1] == pytest.approx(1000 / 8.0)
    assert np.diff(at).mean() == pytest.approx(1 / 8.0, rel=0.01)


def test_constant_gaps_are_equal() -> None:
    np.testing.assert_allclose(times(5, 2.0, "constant"), [0.5, 1.0, 1.5, 2.0, 2.5])


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_of_a_gamma_process_have_its_spread(burstiness: float) -> None:
    """Of a gamma distribution of shape k the deviation is the mean ÷ √k."""
    gaps = np.diff(times(40_000, 10.0, "gamma", burstiness))
    assert gaps.std() / gaps.mean() == pytest.approx(1 / math.sqrt(burstiness), rel=0.05)


def test_poisson_is_gamma_of_shape_one() -> None:
    gaps = np.diff(times(40_000, 10.0, "poisson"))
    # Of an exponential distribution a share of 1 − 1/e is below the mean.
    assert (gaps < 0.1).mean() == pytest.approx(1 - 1 / math.e, abs=0.01)


def test_without_a_rate_all_arrive_at_once() -> None:
    assert not times(7, math.inf).any()
    assert len(times(0, 3.0)) == 0


def test_a_seed_gives_the_same_arrivals() -> None:
    np.testing.assert_array_equal(times(50, 3.0, seed=4), times(50, 3.0, seed=4))
    assert (times(50, 3.0, seed=4) != times(50, 3.0, seed=5)).any()


@pytest.mark.parametrize(
    ("rate", "process", "burstiness", "said"),
    [
        (0.0, "gamma", 1.0, "request rate must be above 0"),
        (math.nan, "gamma", 1.0, "request rate must be above 0"),
        (1.0, "gamma", 0.0, "burstiness must be above 0"),
        (1.0, "gamma", math.inf, "burstiness must be above 0 and finite"),
        (1.0, "constant", 2.0, "burstiness is of the gamma process"),
    ],
)
def test_what_makes_no_process_is_refused(
    rate: float, process: Process, burstiness: float, said: str
) -> None:
    with pytest.raises(OptionError, match=said):
        times(3, rate, process, burstiness)
