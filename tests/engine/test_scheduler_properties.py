"""The scheduler's invariants, over random arrivals, aborts, failures, pins and configurations."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .random_scheduling import Drive

SEEDS = st.integers(0, 2**32 - 1)


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS)
def test_any_use_of_it(seed: int) -> None:
    Drive(seed).run(120)


@pytest.mark.serving
def test_two_hundred_thousand_steps() -> None:
    """And everything that the invariants are about does happen."""
    counts: Counter[str] = Counter()
    for seed in range(400):
        drive = Drive(seed)
        drive.run(250)
        stats = drive.scheduler.stats()
        counts["steps"] += drive.num_steps
        counts["preemptions"] += stats.num_preemptions
        counts["hits"] += stats.prefix_cache_hits
        counts["pins"] += drive.num_pins
        counts["overtaken"] += sum(drive.overtaken.values())
        counts["gave way"] += sum(drive.given_way.values())
    assert counts["steps"] > 200_000
    assert counts["preemptions"] > 1000
    assert counts["hits"] > 50_000
    assert min(counts["pins"], counts["overtaken"]) > 500
    assert counts["gave way"] > 10
