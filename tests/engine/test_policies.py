"""Who goes first, who gives way, and that nobody waits for ever."""

from __future__ import annotations

import pytest

from llmir.engine.scheduler import Scheduler
from llmir.engine.sequence import Sequence
from llmir.errors import RequestError

from .fake_runner import small_limits
from .helpers import make_engine, make_llm
from .scheduling import make_scheduler, make_seq, names, step
from .test_llm_engine import GREEDY

POLICIES = ["fcfs", "priority", "lpm"]
TIGHT = small_limits(num_pages=(7,))  # six pages of four tokens


def scheduler_of(policy: str, limits: object = None, **config: object) -> Scheduler:
    return make_scheduler(limits, scheduling_policy=policy, enable_prefix_caching=True, **config)


def begun(scheduler: Scheduler) -> list[str]:
    """Step until all is done; the names in the order in which they were first computed."""
    order: dict[str, None] = {}
    while scheduler.running or scheduler.waiting:
        order |= dict.fromkeys(names(step(scheduler)[0]))
    return list(order)


def test_the_lower_priority_is_first_and_then_who_came_first():
    scheduler = scheduler_of("priority", max_num_seqs=1)
    for name, priority in [("a", 3), ("b", -1), ("c", 3), ("d", 0), ("e", -1)]:
        scheduler.add(make_seq(2, name, 1, priority))
    assert begun(scheduler) == ["b", "e", "d", "a", "c"]


def test_fcfs_is_the_order_of_arrival():
    scheduler = scheduler_of("fcfs", max_num_seqs=1)
    for name in "cab":
        scheduler.add(make_seq(2, name, 1))
    assert begun(scheduler) == ["c", "a", "b"]


def test_the_longest_cached_prefix_is_first():
    scheduler = scheduler_of("lpm", max_num_seqs=1)
    scheduler.add(make_seq(12, "first", 1))
    step(scheduler)
    for name, shared in [("none", 0), ("one", 4), ("three", 12), ("two", 11), ("three too", 12)]:
        scheduler.add(make_seq([*range(shared), *range(50, 60)], name, 1))
    assert begun(scheduler) == ["three", "three too", "two", "one", "none"]


def test_lpm_forgets_what_was_evicted():
    scheduler = scheduler_of("lpm", max_num_seqs=1)
    for first in (10, 20):
        scheduler.add(make_seq([*range(first, first + 12)], str(first), 1))
        step(scheduler)
    running = make_seq([60] * 4, "runs", 2)
    scheduler.add(running)
    step(scheduler)
    scheduler.add(make_seq([*range(10, 22)], "longer until it is evicted", 1))
    scheduler.add(make_seq([*range(20, 28), 1, 2], "shorter", 1))
    order = scheduler._waiting.candidates(scheduler.blocks.num_cached_columns)
    assert [seq.request_id for seq in order] == ["longer until it is evicted", "shorter"]
    for _ in range(2):
        scheduler.blocks.tree.evict(0)  # the least recently used
    assert begun(scheduler) == ["runs", "shorter", "longer until it is evicted"]


def test_lpm_looks_at_the_oldest_alone_and_at_the_others_later():
    scheduler = scheduler_of("lpm", max_num_seqs=1)
    scheduler.add(make_seq(12, "first", 1))
    step(scheduler)
    for number in range(128):
        scheduler.add(make_seq([50 + number % 10], str(number), 1))
    scheduler.add(make_seq(12, "known", 1))
    assert names(step(scheduler)[0]) == ["0"]
    assert names(step(scheduler)[0]) == ["known"]


def rival(policy: str, number: int) -> Sequence:
    """Whom the policy prefers to `victim`."""
    return make_seq(
        [*range(8), 60], f"rival {number}", 1, priority=-1 if policy == "priority" else 0
    )


@pytest.mark.parametrize("policy", ["priority", "lpm"])
@pytest.mark.parametrize("max_overtakes", [0, 1, 5])
def test_who_has_waited_longest_is_overtaken_so_often_and_then_goes_first(policy, max_overtakes):
    scheduler = scheduler_of(policy, max_num_seqs=1, max_overtakes=max_overtakes)
    scheduler.add(make_seq(9, "first", 1))
    step(scheduler)
    victims = [make_seq([50, 51, 52], f"victim {n}", 1) for n in range(3)]
    for victim in victims:
        scheduler.add(victim)
    order = []
    for number in range(30):
        scheduler.add(rival(policy, number))
        order += names(step(scheduler)[0])
    places = [order.index(victim.request_id) for victim in victims]
    # so many rivals before the first, so many again before the second, and so on
    assert places == [(max_overtakes + 1) * (n + 1) - 1 for n in range(3)]
    assert all(victim.num_overtaken == max_overtakes for victim in victims)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_due_one_waits_for_room_and_nobody_passes(policy):
    scheduler = scheduler_of(policy, TIGHT, max_overtakes=2)
    scheduler.add(make_seq(9, "runs", 12))
    step(scheduler)
    big = make_seq([50 + n % 10 for n in range(20)], "big", 1)
    big.num_overtaken = 2
    scheduler.add(big)
    for number in range(4):
        scheduler.add(rival(policy, number))
    order = begun(scheduler)
    assert order[:2] == ["runs", "big"]


@pytest.mark.parametrize("policy", POLICIES)
def test_the_preempted_are_resumed_before_new_ones_begin(policy):
    scheduler = scheduler_of(policy, TIGHT)
    a, b = (make_seq([50 + n] * 8, f"old {n}", 9) for n in range(2))
    for seq in (a, b, make_seq([53] * 8, "old 2", 9)):
        scheduler.add(seq)
    assert len(step(scheduler)[0]) == 3
    small = make_seq([60], "new", 1, priority=-9 if policy == "priority" else 0)
    scheduler.add(small)
    ran, schedule = step(scheduler)
    assert [seq.request_id for seq in schedule.preempted] == ["old 2"]
    assert names(ran) == ["old 0", "old 1"]  # though one token of "new" would fit
    while scheduler.preempted:
        assert not small.num_computed_tokens
        step(scheduler)
    while scheduler.running or scheduler.waiting:
        step(scheduler)
    assert small.finished
    assert scheduler.num_preemptions >= 1


def test_the_lowest_priority_gives_its_pages_up():
    scheduler = scheduler_of("priority", small_limits(num_pages=(10,)))
    low = make_seq([50] * 8, "low", 9, 5)
    scheduler.add(low)
    step(scheduler)
    scheduler.add(make_seq([51] * 8, "high", 9, 1))
    scheduler.add(make_seq([52] * 8, "middle", 9, 3))
    step(scheduler)
    assert [seq.request_id for seq in scheduler.running] == ["high", "middle", "low"]
    while not scheduler.num_preemptions:
        step(scheduler)
    assert scheduler.preempted == [low]
    assert low.num_overtaken == 1


def test_nobody_is_preempted_for_later_ones_again_and_again():
    scheduler = scheduler_of("priority", small_limits(num_pages=(13,)), max_overtakes=2)
    low = make_seq([50] * 8, "low", 37, 9)
    scheduler.add(low)
    number = 0
    while not low.finished:
        if not scheduler.waiting and len(scheduler.running) < 2:
            scheduler.add(make_seq([51 + number % 10] * 9, str(number), 28))
            number += 1
        step(scheduler)
        assert number < 30
    assert low.num_overtaken == 2
    assert scheduler.num_preemptions > 2  # the third time another gave way


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("windows", [(None,), (None, 6), (7,)])
def test_who_is_guaranteed_its_pages_is_never_preempted(policy, windows):
    limits = small_limits(num_pages=(16,) * len(windows), group_windows=windows)

    def preemptions(admission: str) -> int:
        scheduler = scheduler_of(policy, limits, admission=admission, max_prefill_chunk=5)
        for n in range(12):
            scheduler.add(make_seq([n % 3] * (5 + 3 * n % 7), str(n), 30))
        assert len(begun(scheduler)) == 12
        return scheduler.num_preemptions

    assert preemptions("guaranteed_no_evict") == 0
    # Windows this small never take all the pages.
    assert preemptions("max_utilization") > 0 or windows == (7,)


def test_a_guarantee_is_for_the_whole_output():
    scheduler = make_scheduler(TIGHT, admission="guaranteed_no_evict")
    # 8 tokens and 10 more, of which the last is never fed back: 17, five pages
    scheduler.add(make_seq(8, "a", 10))
    scheduler.add(make_seq(4, "b", 2))  # 5, two pages
    scheduler.add(make_seq(4, "c", 1))  # 4, one page
    assert names(step(scheduler)[0]) == ["a"]  # b does not fit, and c does not overtake it
    assert begun(scheduler) == ["a", "b", "c"]
    scheduler.add(make_seq(8, "a", 9))  # 16, four pages
    scheduler.add(make_seq(4, "b", 2))
    assert names(step(scheduler)[0]) == ["a", "b"]


@pytest.mark.parametrize("policy", ["fcfs", "lpm"])
def test_a_priority_that_means_nothing_is_refused(policy):
    engine = make_engine(scheduling_policy=policy)
    engine.add_request("x", [1], GREEDY, priority=0)
    with pytest.raises(RequestError, match=f"priority is 2, but scheduling_policy is '{policy}'"):
        engine.add_request("y", [1], GREEDY, priority=2)
    with pytest.raises(RequestError, match="priority must be an integer, not 1.5"):
        engine.add_request("y", [1], GREEDY, priority=1.5)
    assert engine.abort("y") is None


def test_priorities_of_generate():
    llm = make_llm(scheduling_policy="priority", max_num_seqs=1)
    prompts = [[1], [2], [3]]
    llm.generate(prompts, GREEDY, priority=[2, 0, 1])
    assert firsts_of(llm) == [2, 3, 1]
    assert len(llm.generate(prompts, GREEDY, priority=7)) == 3
    with pytest.raises(RequestError, match="2 priorities were given for 3 prompts"):
        llm.generate(prompts, GREEDY, priority=[1, 2])
    for wrong in (1.5, [1, "2", 3], True):
        with pytest.raises(RequestError, match="priority must be an integer, not"):
            llm.generate(prompts, GREEDY, priority=wrong)
    with pytest.raises(RequestError, match="priority is 7, but scheduling_policy is 'fcfs'"):
        make_llm().generate(prompts, GREEDY, priority=7)


def firsts_of(llm):
    """The first tokens of prompts in the order in which these were begun."""
    batches = llm.engine.core.runner.batches
    return [int(b.token_ids[0]) for b in batches if b.positions[0] == 0]


@pytest.mark.parametrize(("priority", "order"), [(-1, [1, 2, 3]), (1, [1, 3, 2])])
def test_the_priority_of_a_stream(priority, order):
    llm = make_llm(scheduling_policy="priority", max_num_seqs=1)
    running = llm.stream([1], GREEDY)
    next(running)
    llm.engine.add_request("waits", [3], GREEDY)
    assert list(llm.stream([2], GREEDY, priority=priority))[-1].finished
    while llm.engine.has_unfinished_requests():
        llm.engine.step()
    assert firsts_of(llm) == order
    with pytest.raises(RequestError, match="priority is 7, but scheduling_policy is 'fcfs'"):
        make_llm().stream([1], GREEDY, priority=7)
    with pytest.raises(RequestError, match="priority must be an integer, not 1.5"):
        llm.stream([1], GREEDY, priority=1.5)


def test_the_priorities_of_chats():
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    llm = make_llm(scheduling_policy="priority", max_num_seqs=1)
    chats = [[{"role": "user", "content": text}] for text in "abc"]
    llm.chat(chats, GREEDY, chat_template=template, priority=[2, 0, 1])
    a, b, c = (llm.get_tokenizer().encode(text, add_special_tokens=False)[0] for text in "abc")
    assert firsts_of(llm) == [b, c, a]
    with pytest.raises(RequestError, match="2 priorities were given for 3 prompts"):
        llm.chat(chats, GREEDY, priority=[1, 2])
    with pytest.raises(RequestError, match="priority is 7, but scheduling_policy is 'fcfs'"):
        make_llm().chat(chats[0], GREEDY, priority=7)
