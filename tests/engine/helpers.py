"""An engine on a fake runner, and the check that it holds nothing at the end."""

from __future__ import annotations

from collections import Counter

from llmir.engine import LLM, GenerationConfig, LLMEngine, RequestOutput, SchedulerConfig, Tokenizer
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
    """Every page is free or held by one running sequence, which wastes less than a page.

    unused_slots: False where a step has failed, whose pages are held for the next try.
    """
    scheduler = engine.scheduler
    blocks = scheduler.blocks
    nodes = [] if blocks.tree is None else list(blocks.tree.nodes())
    for group, pool in enumerate(blocks.pools):
        own = [
            page
            for seq in scheduler.running
            for page in blocks.pages(seq, group)[max(len(seq.nodes), seq.first_page[group]) :]
        ]
        cached = [node.pages[group] for node in nodes if node.pages[group]]
        held = own + cached
        assert len(set(held)) == len(held)
        assert set(held).isdisjoint(pool._free)
        assert set(held) == pool._held
        assert 0 not in held
        assert len(held) + pool.num_free == pool.capacity
        users = Counter(
            id(node) for seq in scheduler.running for node in seq.nodes[seq.first_page[group] :]
        )
        assert all(node.users[group] == users[id(node)] for node in nodes)
        idle = [node for node in nodes if node.pages[group] and not node.users[group]]
        assert blocks.num_cached[group] == len(idle)
        for seq in scheduler.running:
            pages = blocks.pages(seq, group)
            unused = len(pages) * blocks.page_size - seq.num_computed_tokens
            assert unused >= 0
            assert unused < blocks.page_size or not unused_slots
            assert not any(pages[: seq.first_page[group]])
            for column, node in enumerate(seq.nodes):
                if column >= seq.first_page[group]:
                    assert pages[column] == node.pages[group]
                start = column * blocks.page_size
                assert node.tokens == tuple(seq.tokens(start, start + blocks.page_size))
    assert all(seq.row is None for seq in scheduler.waiting)


def assert_nothing_held(engine: LLMEngine) -> None:
    assert engine.scheduler.blocks.num_free == tuple(
        pool.capacity for pool in engine.scheduler.blocks.pools
    )
    assert not engine.scheduler.running
    assert not engine.scheduler.waiting
    assert not engine.has_unfinished_requests()
