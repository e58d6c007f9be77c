"""An engine on a fake runner, and the check that it holds nothing at the end."""

from __future__ import annotations

from collections import Counter

from llmir.engine import (
    LLM,
    GenerationConfig,
    LLMEngine,
    RequestOutput,
    SchedulerConfig,
    Tokenizer,
)
from llmir.engine.scheduler import Scheduler
from llmir.runtime.base import StepLimits

from .fake_runner import FakeRunner, small_limits
from .tiny_tokenizers import CONFIG, byte_level

TOKENIZER = Tokenizer(byte_level(), CONFIG)


def make_engine(limits: StepLimits | None = None, eos: tuple[int, ...] = (), **config: object):
    return LLMEngine(
        FakeRunner(limits), TOKENIZER, eos_token_ids=eos, config=SchedulerConfig(**config)
    )


def make_llm(limits: StepLimits | None = None, generation: dict | None = None, **config: object):
    return LLM(
        FakeRunner(limits or small_limits(vocab_size=TOKENIZER.vocab_size)),
        TOKENIZER,
        generation_config=GenerationConfig.from_json(generation or {}),
        config=SchedulerConfig(**config),
    )


def run(engine: LLMEngine) -> dict[str, RequestOutput]:
    """Step until everything is finished; checks the pages after every step."""
    done = {}
    for _ in range(10_000):
        if not engine.has_unfinished_requests():
            assert_nothing_held(engine)
            return done
        for output in engine.step():
            if output.finished:
                assert output.request_id not in done
                done[output.request_id] = output
        assert_pages_add_up(engine)
    raise AssertionError("the engine does not come to an end")


def assert_pages_add_up(engine: LLMEngine, *, unused_slots: bool = True) -> None:
    """As assert_scheduler_adds_up; and so do the statistics."""
    assert_scheduler_adds_up(engine.scheduler, unused_slots=unused_slots)
    assert_stats(engine.scheduler)


def assert_scheduler_adds_up(scheduler: Scheduler, *, unused_slots: bool = True) -> None:
    """Every page is free, or one running sequence's, or the tree's, with a user for each who has it.

    unused_slots: whether each sequence has fewer than a page of them; False where a step has
        failed, whose pages are held for the next try.
    """
    blocks, running = scheduler.blocks, scheduler.running
    page_size = blocks.page_size
    nodes = [] if blocks.tree is None else list(blocks.tree.nodes())
    pins = [] if blocks.pins is None else list(blocks.pins._pins)
    assert blocks.tree is None or blocks.tree.num_nodes == len(nodes)
    for group, pool in enumerate(blocks.pools):
        held = [node.pages[group] for node in nodes if node.pages[group]]
        users: Counter[int] = Counter()
        for seq in running:
            pages = blocks.pages(seq, group)
            first, shared = seq.first_page[group], seq.nodes[seq.first_page[group] :]
            assert not any(pages[:first])
            assert pages[first : first + len(shared)] == [node.pages[group] for node in shared]
            held += pages[first + len(shared) :]
            users.update(map(id, shared))
        if pins:
            pinned = Counter(
                id(node) for pin in pins for g, node in blocks.pins._pages(pin.nodes) if g == group
            )
            assert blocks.pins.num_pages[group] == len(pinned)
            users += pinned
        different = set(held)
        assert len(different) == len(held)
        assert different == pool._held
        assert pool._held.isdisjoint(pool._free)
        assert 0 not in different
        assert len(held) + pool.num_free == pool.capacity
        assert [node.users[group] for node in nodes] == [users[id(node)] for node in nodes]
        idle = sum(node.pages[group] != 0 and node.users[group] == 0 for node in nodes)
        assert blocks.num_cached[group] == idle
    ends = Counter(id(holder.nodes[-1]) for holder in [*running, *pins] if holder.nodes)
    assert [node.ends for node in nodes] == [ends[id(node)] for node in nodes]
    for seq in running:
        unused = seq.num_columns * page_size - seq.num_computed_tokens
        assert unused >= 0
        assert unused < page_size or not unused_slots
        tokens = [token for node in seq.nodes for token in node.tokens]
        assert tokens == seq.tokens(0, len(tokens))
    assert all(seq.row is None for seq in scheduler.waiting)


def assert_stats(scheduler: Scheduler) -> None:
    """The statistics are what counting says."""
    stats, blocks = scheduler.stats(), scheduler.blocks
    assert stats.num_running == len(scheduler.running)
    assert stats.num_waiting == len(scheduler.waiting)
    used = [
        1 - free / pool.capacity for free, pool in zip(blocks.num_free, blocks.pools, strict=True)
    ]
    assert stats.kv_cache_usage == max(used)
    assert 0 <= stats.prefix_cache_hits <= stats.prefix_cache_queries
    slots = sum(len(blocks.pages(seq, 0)) * blocks.page_size for seq in scheduler.running)
    computed = sum(seq.num_computed_tokens for seq in scheduler.running)
    assert stats.num_unused_slots == slots - computed


def assert_nothing_held(engine: LLMEngine) -> None:
    assert engine.scheduler.blocks.num_free == tuple(
        pool.capacity for pool in engine.scheduler.blocks.pools
    )
    assert not engine.scheduler.running
    assert not engine.scheduler.waiting
    assert not engine.has_unfinished_requests()
