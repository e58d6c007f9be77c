"""Who runs when: budgets, chunks, pages, preemption."""

import pytest

from llmir.engine.batch import build_batch
from llmir.engine.block_manager import BlockManager
from llmir.engine.page_needs import PageNeeds
from llmir.engine.prompt_rows import PromptRows
from llmir.errors import OptionError, UnknownNameError

from .fake_runner import check_batch, small_limits
from .scheduling import make_scheduler, make_seq, step


def test_decodes_and_chunks_share_the_budget():
    scheduler = make_scheduler(max_num_batched_tokens=10)
    for name, size in [("a", 4), ("b", 15), ("c", 2)]:
        scheduler.add(make_seq(size, name))
    assert step(scheduler)[0] == [("a", 0, 4), ("b", 0, 6)]
    assert step(scheduler)[0] == [("a", 4, 1), ("b", 6, 9)]
    assert step(scheduler)[0] == [("a", 5, 1), ("b", 15, 1), ("c", 0, 2)]


def test_an_older_prompt_leaves_a_token_for_each_younger_decode():
    scheduler = make_scheduler(max_num_batched_tokens=8, max_prefill_chunk=6)
    scheduler.add(make_seq(40, "long"))
    scheduler.add(make_seq(2, "short"))
    assert step(scheduler)[0] == [("long", 0, 6), ("short", 0, 2)]
    scheduler.max_prefill_chunk = 8
    assert step(scheduler)[0] == [("long", 6, 7), ("short", 2, 1)]


def test_prompts_stay_short_while_others_decode():
    limits = small_limits(max_num_batched_tokens=100, num_pages=(200,))
    scheduler = make_scheduler(limits, max_prefill_per_decode=3)
    scheduler.add(make_seq(90, "alone", 4))
    assert step(scheduler)[0] == [("alone", 0, 90)]  # nobody waits for a token
    scheduler.add(make_seq(60, "long"))
    scheduler.add(make_seq(50, "next"))
    # 8 tokens, 8 for each of the two prompts, and 3 for the one that decodes
    assert step(scheduler)[0] == [("alone", 90, 1), ("long", 0, 27)]
    assert step(scheduler)[0] == [("alone", 91, 1), ("long", 27, 27)]
    assert step(scheduler)[0] == [("alone", 92, 1), ("long", 54, 6), ("next", 0, 21)]
    # long decodes now, and next is the one prompt
    assert step(scheduler)[0] == [("long", 60, 1), ("next", 21, 19)]


@pytest.mark.parametrize("bad", [-1, float("nan"), "2"])
def test_max_prefill_per_decode_is_a_number(bad):
    with pytest.raises(OptionError, match="max_prefill_per_decode must be a number, at least 0"):
        make_scheduler(max_prefill_per_decode=bad)


def test_max_num_seqs():
    scheduler = make_scheduler(max_num_seqs=2)
    for name in "abc":
        scheduler.add(make_seq(2, name))
    assert [name for name, *_ in step(scheduler)[0]] == ["a", "b"]
    assert scheduler.waiting[0].request_id == "c"


def test_no_more_sequences_than_tokens():
    assert make_scheduler(max_num_batched_tokens=3).max_num_seqs == 3


def test_rows_of_logits_have_a_budget():
    scheduler = make_scheduler(max_num_seqs=3, max_logit_rows=5)
    for name in "abc":
        scheduler.add(make_seq(9, name, 1))
        scheduler.waiting[-1].prompt_rows = PromptRows(8)
    scheduler.add(make_seq(2, "d", 1))
    assert step(scheduler)[0] == [("a", 0, 5)]
    for seq in scheduler.waiting:
        seq.prompt_rows = None
    # four rows for the rest of a's prompt and its next token, one for b
    assert step(scheduler)[0] == [("a", 5, 4), ("b", 0, 9)]


def test_splits():
    scheduler = make_scheduler(prefill_splits=(7, 3))
    scheduler.add(make_seq(10))
    sizes = [step(scheduler)[0][0][1:] for _ in range(4)]
    assert sizes == [(0, 3), (3, 4), (7, 3), (10, 1)]


def test_the_youngest_is_preempted_and_comes_back_first():
    scheduler = make_scheduler(small_limits(num_pages=(7,)))  # six pages of four tokens
    a, b, c = make_seq(8, "a", 9), make_seq(8, "b", 9), make_seq(8, "c", 9)
    d = make_seq(1, "d", 1)
    for seq in (a, b, c, d):
        scheduler.add(seq)
    ran, schedule = step(scheduler)
    assert [name for name, *_ in ran] == ["a", "b", "c"]
    ran, schedule = step(scheduler)
    # a takes c's pages, b has room left from them
    assert [name for name, *_ in ran] == ["a", "b"]
    assert schedule.preempted == [c]
    assert c.num_computed_tokens == 0
    assert c.output_token_ids == [1]
    assert scheduler.waiting[0] is c
    assert scheduler.waiting[1] is d  # would fit, and does not overtake
    while scheduler.waiting:
        step(scheduler)
    assert a.finished
    assert c.num_computed_tokens > 0


def test_a_prompt_waits_until_all_of_it_fits():
    scheduler = make_scheduler(small_limits(num_pages=(9,)), max_prefill_chunk=4)
    first, second = make_seq(20, "first", 4), make_seq(16, "second")
    scheduler.add(first)
    scheduler.add(second)
    while not first.finished:
        assert all(name == "first" for name, *_ in step(scheduler)[0])
    assert step(scheduler)[0] == [("second", 0, 4)]


def test_options_beyond_the_limits_are_refused():
    with pytest.raises(OptionError, match="max_num_batched_tokens must be between 1 and 32"):
        make_scheduler(max_num_batched_tokens=33)
    with pytest.raises(OptionError, match="max_num_seqs"):
        make_scheduler(max_num_seqs=0)
    with pytest.raises(OptionError, match="max_prefill_chunk"):
        make_scheduler(max_prefill_chunk=33)
    with pytest.raises(OptionError, match="max_overtakes must be at least 0, not -1"):
        make_scheduler(max_overtakes=-1)


def test_unknown_names_are_refused_with_the_known_ones():
    known = "unknown scheduling_policy 'sjf'; known: fcfs, lpm, priority"
    with pytest.raises(UnknownNameError, match=known):
        make_scheduler(scheduling_policy="sjf")
    known = "unknown admission 'all'; known: guaranteed_no_evict, max_utilization"
    with pytest.raises(UnknownNameError, match=known):
        make_scheduler(admission="all")
    with pytest.raises(OptionError, match="'lpm' orders requests by what the prefix cache has"):
        make_scheduler(scheduling_policy="lpm", enable_prefix_caching=False)


def test_statistics():
    scheduler = make_scheduler(small_limits(num_pages=(7,)), enable_prefix_caching=True)
    scheduler.add(make_seq(9, "a", 12))
    assert scheduler.stats().num_waiting == 1
    step(scheduler)
    stats = scheduler.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_unused_slots) == (1, 0, 3)
    assert stats.kv_cache_usage == pytest.approx(3 / 6)
    assert (stats.prefix_cache_queries, stats.prefix_cache_hits) == (9, 0)
    scheduler.add(make_seq(10, "b", 12))
    step(scheduler)
    stats = scheduler.stats()
    # a has computed ten tokens, and b its own two and the eight that it found
    assert (stats.num_running, stats.num_unused_slots) == (2, 2 + 2)
    assert (stats.prefix_cache_queries, stats.prefix_cache_hits) == (19, 8)
    assert stats.kv_cache_usage == pytest.approx(4 / 6)
    while not scheduler.preempted:
        step(scheduler)
    stats = scheduler.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_preemptions) == (1, 1, 1)
    while scheduler.running or scheduler.waiting:
        step(scheduler)
    stats = scheduler.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_unused_slots) == (0, 0, 0)
    assert stats.kv_cache_usage == 0
    # Who came back found what it had computed itself, which says nothing of the cache.
    assert (stats.prefix_cache_queries, stats.prefix_cache_hits) == (19, 8)


def test_pages_for_tokens_that_were_not_computed_are_given_back():
    scheduler = make_scheduler()
    seq = make_seq(30)
    scheduler.add(seq)
    scheduler.schedule()
    assert seq.num_columns == 8
    seq.num_computed_tokens = 9  # the rest was not kept
    scheduler.blocks.advance(seq)
    assert seq.num_columns == 3
    assert scheduler.blocks.num_free == (60,)
    scheduler.finish(seq)
    assert scheduler.blocks.num_free == (63,)


def test_windows_give_pages_back():
    blocks = BlockManager(small_limits(num_pages=(64, 5), group_windows=(None, 6)))
    seq = make_seq(60)
    for start in range(60):
        assert blocks.max_chunk(seq, 1) == 1
        blocks.allocate(seq, start + 1)
        seq.num_computed_tokens = start + 1
        blocks.advance(seq)
        # the next token, at start + 1, looks back to start + 1 - 5
        oldest = max(0, start + 1 - 5) // 4
        assert blocks.pages(seq, 1)[:oldest] == [0] * oldest
        assert all(blocks.pages(seq, 1)[oldest:])
        assert all(blocks.pages(seq, 0))
    blocks.free(seq)
    assert blocks.num_free == (63, 4)


@pytest.mark.parametrize("page_size", [1, 4, 16])
def test_a_window_never_needs_more_pages_than_it_is_said_to(page_size):
    for window in range(1, 40):
        limits = small_limits(page_size=page_size, num_pages=(64,), group_windows=(window,))
        said = PageNeeds(limits, 1, whole_output=False).window_pages(0)
        worst = max(
            c // page_size - max(0, c - window + 1) // page_size + 1 for c in range(10 * window)
        )
        assert said == worst


def test_capacity():
    def capacity(pages, windows):
        return BlockManager(small_limits(num_pages=pages, group_windows=windows)).capacity_tokens

    assert capacity((11,), (None,)) == 40
    assert capacity((11, 6), (None, 8)) == 40
    assert capacity((6,), (8,)) is None
    assert capacity((3,), (8,)) == 8  # the window does not fit, short sequences do


def test_a_page_freed_twice_is_a_bug_that_shows():
    blocks = BlockManager(small_limits())
    page = blocks.pools[0].allocate()
    blocks.pools[0].free(page)
    with pytest.raises(KeyError):
        blocks.pools[0].free(page)


def test_batch_of_a_mixture():
    scheduler = make_scheduler(small_limits(num_pages=(64, 64), group_windows=(None, 4)))
    scheduler.add(make_seq(9, "a"))
    step(scheduler)
    scheduler.add(make_seq(3, "b"))
    limits = small_limits(num_pages=(64, 64), group_windows=(None, 4))
    batch = build_batch(scheduler.schedule().chunks, scheduler.blocks.table)
    check_batch(batch, limits)
    assert batch.token_ids.tolist() == [1, 0, 1, 2]
    assert batch.positions.tolist() == [9, 0, 1, 2]
    assert batch.query_start.tolist() == [0, 1, 4]
    assert batch.context_len.tolist() == [10, 3]
    assert batch.logit_rows.tolist() == [0, 3]
    assert batch.page_table.shape == (2, 2, 3)
    assert (batch.page_table[1, 0] == 0).tolist() == [True, False, False]
