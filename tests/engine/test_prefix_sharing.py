"""Requests that begin alike and come together: what they share is computed once."""

from __future__ import annotations

import pytest

from llmir.engine.scheduler import Scheduler

from .fake_runner import reference_greedy, small_limits
from .helpers import assert_pages_add_up, make_engine, run
from .scheduling import make_scheduler, make_seq, names, step
from .test_llm_engine import computed_tokens, params_of

SHARED = [(7 * n) % 64 for n in range(40)]  # ten pages
LARGE = small_limits(num_pages=(200,), max_num_seqs=32)


def requests(count: int) -> list[list[int]]:
    return [[*SHARED, n, n + 1, n + 2] for n in range(count)]


@pytest.mark.parametrize("policy", ["fcfs", "priority", "lpm"])
@pytest.mark.parametrize("windows", [(None,), (None, 6), (7,)])
@pytest.mark.parametrize("chunk", [7, 32])
def test_sixteen_that_come_together_compute_it_once(policy, windows, chunk):
    limits = small_limits(num_pages=(200,) * len(windows), group_windows=windows, max_num_seqs=32)
    engine = make_engine(limits, scheduling_policy=policy, max_prefill_chunk=chunk)
    for number, prompt in enumerate(requests(16)):
        engine.add_request(str(number), prompt, params_of(1, temperature=0))
    done = run(engine)
    assert sum(computed_tokens(engine)) == 40 + 16 * 3
    for number, prompt in enumerate(requests(16)):
        expected = reference_greedy(prompt, 1, limits)
        assert done[str(number)].outputs[0].token_ids == expected


def test_without_a_cache_each_computes_its_own():
    engine = make_engine(LARGE, enable_prefix_caching=False)
    for number, prompt in enumerate(requests(16)):
        engine.add_request(str(number), prompt, params_of(1, temperature=0))
    run(engine)
    assert sum(computed_tokens(engine)) == 16 * 43


def test_others_use_the_step_meanwhile():
    scheduler = make_scheduler(LARGE, enable_prefix_caching=True, max_prefill_chunk=16)
    for number, prompt in enumerate(requests(3)):
        scheduler.add(make_seq(prompt, str(number)))
    scheduler.add(make_seq([60] * 9, "other"))
    assert step(scheduler)[0] == [("0", 0, 16), ("other", 0, 9)]
    assert step(scheduler)[0] == [("0", 16, 16), ("other", 9, 1)]
    # The last whole page is in this chunk, and the next two begin after it.
    assert step(scheduler)[0] == [("0", 32, 11), ("other", 10, 1)]
    ran, _ = step(scheduler)
    assert sorted(ran) == [("0", 43, 1), ("1", 40, 3), ("2", 40, 3), ("other", 11, 1)]


def test_a_page_that_differs_ends_the_wait():
    scheduler = make_scheduler(LARGE, enable_prefix_caching=True, max_prefill_chunk=12)
    scheduler.add(make_seq(SHARED, "a"))
    scheduler.add(make_seq([*SHARED[:12], 1, 2, 3, 4, 5], "b"))
    assert names(step(scheduler)[0]) == ["a"]
    assert step(scheduler)[0] == [("a", 12, 12), ("b", 12, 5)]


def waiting_for_one_that_is(fate: str) -> Scheduler:
    """Five requests of which four wait for the first, after which that is gone."""
    scheduler = make_scheduler(LARGE, enable_prefix_caching=True, max_prefill_chunk=8)
    seqs = [make_seq(prompt, str(number), 2) for number, prompt in enumerate(requests(5))]
    for seq in seqs:
        scheduler.add(seq)
    assert step(scheduler)[0] == [("0", 0, 8)]
    if fate == "aborted":
        scheduler.finish(seqs[0])
    elif fate == "preempted":
        scheduler._preempt(seqs[0])
    return scheduler


def test_the_first_of_them_is_aborted_and_the_next_goes_on_from_there():
    scheduler = waiting_for_one_that_is("aborted")
    assert step(scheduler)[0] == [("1", 8, 8)]


def test_the_first_of_them_is_preempted_and_goes_on_from_there():
    scheduler = waiting_for_one_that_is("preempted")
    assert step(scheduler)[0] == [("0", 8, 8)]
    while scheduler.running or scheduler.waiting:
        step(scheduler)


def test_only_pages_whose_tokens_are_there_are_waited_for():
    """A page that an answer fills token by token would be a long wait."""
    scheduler = make_scheduler(LARGE, enable_prefix_caching=True)
    scheduler.add(make_seq([9, 8, 7], "a", 20))
    step(scheduler)
    step(scheduler)
    scheduler.add(make_seq([9, 8, 7, 1, 1, 5, 5, 5], "b", 1))  # as a's page is going to be
    assert names(step(scheduler)[0]) == ["a", "b"]


@pytest.mark.parametrize("max_overtakes", [0, 3])
def test_who_waits_for_another_is_not_overtaken_for_ever(max_overtakes):
    limits = small_limits(num_pages=(300,), max_num_seqs=64, max_model_len=400)
    scheduler = make_scheduler(
        limits, enable_prefix_caching=True, max_prefill_chunk=4, max_overtakes=max_overtakes
    )
    prompt = [n % 60 for n in range(200)]
    scheduler.add(make_seq(prompt, "leader", 1))
    scheduler.add(make_seq(prompt, "follower", 1))
    order: dict[str, None] = {}
    for number in range(60):
        scheduler.add(make_seq([61, number % 64], str(number), 1))
        order |= dict.fromkeys(names(step(scheduler)[0]))
    assert list(order).index("follower") == 1 + max_overtakes
    # It came to that without computing anything twice.
    assert scheduler.blocks.num_hit_tokens == 196


def test_the_outputs_of_a_request_share_its_pages():
    """`n` outputs hold the prompt's whole pages once, and a page of their own each."""
    engine = make_engine(small_limits(num_pages=(64,), max_num_seqs=16))
    engine.add_request("x", [*SHARED, 1, 2], params_of(6, n=12, seed=4))
    for _ in range(3):  # 32 tokens of the prompt, 10, and then the others
        engine.step()
    running = engine.scheduler.running
    assert len(running) == 12
    blocks = engine.scheduler.blocks
    pages = [blocks.pages(seq, 0) for seq in running]
    assert all(row[:10] == pages[0][:10] for row in pages)
    assert len({row[10] for row in pages}) == 12
    num_held = blocks.pools[0].capacity - blocks.num_free[0]
    assert num_held == 10 + 12
    assert_pages_add_up(engine)
    run(engine)
