"""Some 200 random workloads on real models: whoever else is served, an answer is what it is alone.

The expected answers are of each request alone, with all pages, without cache or drafts, which
the other tests of this directory hold to transformers.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from engine.helpers import assert_nothing_held

import llmir
from llmir.artifact import Artifact
from llmir.engine import (
    AsyncLLM,
    CompletionOutput,
    EngineStats,
    LLMEngine,
    RequestOutput,
    SchedulerConfig,
)
from llmir.engine.from_artifact import Opened, open_artifact

from .workloads import Ask, FewPages, Workload, random_workload

SECONDS_PER_STEP = 0.002
"""About what a step of these models takes, for who comes and leaves by the clock."""


def steps(opened: Opened, workload: Workload) -> tuple[list[RequestOutput | None], EngineStats]:
    """Serve a workload with LLMEngine, step by step; None: who left before it came."""
    engine = LLMEngine(
        FewPages(opened.runner, workload.num_pages),
        opened.tokenizer,
        eos_token_ids=eos_token_ids(opened),
        config=workload.config,
        speculation=workload.speculation,
    )
    found: list[RequestOutput | None] = [None] * len(workload.asks)
    last_arrival = max(ask.arrival for ask in workload.asks)
    step = 0
    while step <= last_arrival or engine.has_unfinished_requests():
        for number, ask in enumerate(workload.asks):
            if ask.arrival == step:
                add(engine, str(number), ask)
            if ask.leaves == step:
                found[number] = engine.abort(str(number)) or found[number]
        for output in engine.step():
            found[int(output.request_id)] = output
        step += 1
        assert step < 5_000, "the engine does not come to an end"
    assert_nothing_held(engine)
    return found, engine.stats()


def add(engine: LLMEngine, request_id: str, ask: Ask) -> None:
    engine.add_request(request_id, ask.prompt, ask.params, priority=ask.priority)


def threaded(opened: Opened, workload: Workload) -> tuple[list[RequestOutput | None], EngineStats]:
    """Serve a workload with AsyncLLM; who leaves does so by abort() or by not reading on."""
    found: list[RequestOutput | None] = [None] * len(workload.asks)

    async def ask_for(llm: AsyncLLM, number: int, ask: Ask) -> None:
        await asyncio.sleep(ask.arrival * SECONDS_PER_STEP)
        stream = llm.generate(
            ask.prompt,
            ask.params,
            request_id=str(number),
            priority=ask.priority,
            final_only=number % 3 == 0,
        )
        async for output in stream:
            found[number] = output

    async def leave(llm: AsyncLLM, number: int, ask: Ask, task: asyncio.Task[None]) -> None:
        assert ask.leaves is not None
        await asyncio.sleep(ask.leaves * SECONDS_PER_STEP)
        if number % 2:
            task.cancel()
        else:
            await llm.abort(str(number))

    async def body() -> EngineStats:
        async with AsyncLLM(
            FewPages(opened.runner, workload.num_pages),
            opened.tokenizer,
            generation_config=opened.generation_config,
            config=workload.config,
            speculation=workload.speculation,
        ) as llm:
            tasks = []
            for number, ask in enumerate(workload.asks):
                task = asyncio.create_task(ask_for(llm, number, ask))
                tasks.append(task)
                if ask.leaves is not None:
                    tasks.append(asyncio.create_task(leave(llm, number, ask, task)))
            async with asyncio.timeout(60):
                ended = await asyncio.gather(*tasks, return_exceptions=True)
            for error in ended:
                if error is not None and not isinstance(error, asyncio.CancelledError):
                    raise error
        assert_nothing_held(llm._core)
        assert len(llm._processor) == 0
        return llm.stats()

    return found, asyncio.run(body())


def alone(opened: Opened, ask: Ask) -> RequestOutput:
    """The answer of a request by itself, token by token."""
    engine = LLMEngine(
        opened.runner,
        opened.tokenizer,
        eos_token_ids=eos_token_ids(opened),
        config=SchedulerConfig(enable_prefix_caching=False),
    )
    engine.add_request("alone", ask.prompt, ask.params)
    while True:
        for output in engine.step():
            if output.finished:
                return output


def eos_token_ids(opened: Opened) -> list[int]:
    """As LLM and AsyncLLM have them."""
    ids = set(opened.generation_config.eos_token_ids)
    assert opened.tokenizer is not None
    if opened.tokenizer.eos_token_id is not None:
        ids.add(opened.tokenizer.eos_token_id)
    return sorted(ids)


def assert_same(found: CompletionOutput, expected: CompletionOutput) -> None:
    """Bit for bit; of who has left, as far as it came."""
    if found.finish_reason not in (None, "abort"):
        assert found == expected
        return
    length = len(found.token_ids)
    assert found.token_ids == expected.token_ids[:length]
    assert (found.logprobs or []) == (expected.logprobs or [])[:length]


def assert_as_alone(opened: Opened, workload: Workload, serve: Callable, counts: Counter) -> None:
    """Serve a workload, compare, and count what happened."""
    answers, stats = serve(opened, workload)
    counts["preemptions"] += stats.num_preemptions
    counts["cached tokens"] += stats.prefix_cache_hits
    counts["accepted drafts"] += stats.num_accepted_tokens
    for number, (ask, found) in enumerate(zip(workload.asks, answers, strict=True)):
        if found is None:
            assert ask.leaves is not None
            continue
        assert found.finished or ask.leaves is not None
        expected = alone(opened, ask)
        for part, whole in zip(found.outputs, expected.outputs, strict=True):
            assert part.finish_reason not in (None, "abort") or ask.leaves is not None
            assert_same(part, whole)
            counts["whole answers"] += part.finish_reason not in (None, "abort")
            counts["parts of answers"] += part.finish_reason in (None, "abort") and any(
                part.token_ids
            )
        if found.finished and found.outputs[0].finish_reason != "abort":
            assert found.prompt_logprobs == expected.prompt_logprobs, f"request {number}"


def assert_all_as_alone(artifact: Artifact, numbers: range, kind: int) -> Counter:
    """Serve the workloads of these numbers; a failure says which it was."""
    opened = open_artifact(artifact)
    counts: Counter[str] = Counter()
    for number in numbers:
        seed = [kind, number]
        workload = random_workload(seed, opened.runner.limits)
        serve = threaded if number % 3 == 2 else steps
        try:
            assert_as_alone(opened, workload, serve, counts)
        except BaseException as error:
            error.add_note(f"random_workload({seed}), served by {serve.__name__}:\n{workload}")
            raise
    return counts


def assert_all_happened(counts: Counter) -> None:
    """That the workloads were what they were meant to be."""
    assert counts["preemptions"] > 20, counts
    assert counts["cached tokens"] > 500, counts
    assert counts["accepted drafts"] > 20, counts
    assert counts["whole answers"] > 150, counts
    assert counts["parts of answers"] > 5, counts


@pytest.mark.serving
def test_llama(tiny_artifact: Path) -> None:
    assert_all_happened(assert_all_as_alone(llmir.load(tiny_artifact), range(75), 0))


@pytest.mark.serving
def test_short_steps(short_steps: Artifact) -> None:
    assert_all_happened(assert_all_as_alone(short_steps, range(65), 1))


@pytest.mark.serving
def test_two_page_tables_one_with_a_window(tiny_checkpoint: Callable[..., Path]) -> None:
    artifact = llmir.compile(tiny_checkpoint("qwen2-window"), page_size=8)
    assert_all_happened(assert_all_as_alone(artifact, range(60), 2))


@pytest.mark.serving
def test_the_demo_model(demo_artifact: Path) -> None:
    counts = assert_all_as_alone(llmir.load(demo_artifact), range(4), 3)
    assert counts["whole answers"] > 10, counts
