"""What the engine's own part of a step costs: scheduling, and building the batch.

    pytest tests/engine/test_step_speed.py -s

prints the times.  With 256 sequences at depth 100 … 140, of which each computes a token, it was
0.41 ms on an EPYC with Python 3.11, and 0.09 ms with 32.
"""

from __future__ import annotations

import time

import pytest

from llmir.engine.batch import build_batch
from llmir.engine.scheduler import Scheduler

from .fake_runner import small_limits
from .scheduling import make_scheduler, make_seq, step

TOLERANCE = 2.5
"""How much slower than the machine that the bounds are for a test machine may be."""


def decoding(num_seqs: int, policy: str, num_waiting: int) -> Scheduler:
    """That many sequences that run, and others for which there is no room."""
    limits = small_limits(
        page_size=16,
        num_pages=(num_seqs * 9 + 2,),
        max_model_len=16384,
        max_num_batched_tokens=num_seqs * 100,
        max_num_seqs=512,
    )
    scheduler = make_scheduler(limits, enable_prefix_caching=True, scheduling_policy=policy)
    for number in range(num_seqs):
        scheduler.add(make_seq([number * 100 + n for n in range(100)], str(number), 100))
    step(scheduler)
    long = list(range(num_seqs * 16 * 3))
    for _ in range(num_waiting):
        scheduler.add(make_seq(long, "waits", 1))
    return scheduler


@pytest.mark.parametrize(
    ("num_seqs", "policy", "num_waiting", "bound_ms"),
    [
        (256, "fcfs", 0, 1.0),
        (32, "fcfs", 0, 0.2),
        (256, "fcfs", 1000, 1.5),  # the first is looked at in every step
        (256, "lpm", 1000, 1.5),
    ],
)
def test_scheduling_and_building_a_batch(num_seqs, policy, num_waiting, bound_ms):
    scheduler = decoding(num_seqs, policy, num_waiting)
    best_ms = float("inf")
    for _ in range(40):
        start = time.perf_counter()
        schedule = scheduler.schedule()
        batch = build_batch(schedule.chunks, scheduler.blocks.table)
        best_ms = min(best_ms, (time.perf_counter() - start) * 1e3)
        assert len(batch.token_ids) == num_seqs
        for chunk in schedule.chunks:
            scheduler.advance(chunk)
            chunk.seq.output_token_ids.append(1)
    print(f"{num_seqs} sequences, {policy}, {num_waiting} waiting: {best_ms:.3f} ms")
    assert best_ms <= bound_ms * TOLERANCE
