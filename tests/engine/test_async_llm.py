"""AsyncLLM: the answers of LLM, for many at once, and a loop that never waits for a step."""

import asyncio
import time

import pytest

from llmir.engine import AsyncLLM, SamplingParams, SchedulerConfig
from llmir.errors import DeviceError, EngineStoppedError, RequestError

from .fake_runner import FakeRunner, reference_greedy, small_limits
from .helpers import TOKENIZER, assert_nothing_held, make_llm

LIMITS = small_limits(vocab_size=TOKENIZER.vocab_size)
GREEDY = SamplingParams(temperature=0, max_tokens=6)
LONG = SamplingParams(temperature=0, max_tokens=100)
TEXTS = ["the capital of France", "a dog", "the cat ran home", "hello", "once upon a time there"]


class SlowRunner(FakeRunner):
    """Takes its time, without holding Python's lock, as a device does."""

    seconds = 0.03

    def _logits(self, batch, call):
        time.sleep(self.seconds)
        return super()._logits(batch, call)


def serve(main, runner=None, **config):
    """Run `main(llm)` on a new AsyncLLM, which must hold nothing at the end."""

    async def body():
        async with AsyncLLM(
            runner or FakeRunner(LIMITS), TOKENIZER, config=SchedulerConfig(**config)
        ) as llm:
            await asyncio.wait_for(main(llm), 60)
        assert_nothing_held(llm._core)
        assert len(llm._processor) == 0

    asyncio.run(body())


async def last(stream):
    async for output in stream:
        result = output
    assert result.finished
    return result


def test_many_at_once_get_what_each_gets_alone():
    params = [
        SamplingParams(temperature=0, max_tokens=30, stop=["e", "zz"]),
        SamplingParams(seed=3, max_tokens=9, n=2, logprobs=2),
        SamplingParams(temperature=0, max_tokens=5, prompt_logprobs=1),
        GREEDY,
        SamplingParams(seed=1, max_tokens=20, min_tokens=4, stop=[" "]),
    ]
    sync = make_llm(LIMITS)
    expected = [sync.generate(text, one)[0] for text, one in zip(TEXTS, params, strict=True)]

    async def main(llm):
        streams = [
            llm.generate(text, one, request_id=str(i), final_only=i % 2 == 0)
            for i, (text, one) in enumerate(zip(TEXTS, params, strict=True))
        ]
        for found, wanted in zip(await asyncio.gather(*map(last, streams)), expected, strict=True):
            assert found.outputs == wanted.outputs
            assert found.prompt_logprobs == wanted.prompt_logprobs
            assert found.prompt == wanted.prompt

    for num_seqs in (1, 2, 8):
        serve(main, max_num_seqs=num_seqs)


@pytest.mark.parametrize("stop", [(), ("a",), (" t", "he")])
def test_deltas_add_up(stop):
    params = SamplingParams(seed=8, max_tokens=40, stop=stop)

    async def main(llm):
        text, token_ids, times = "", [], 0
        async for output in llm.generate("hello", params, request_id="0", delta=True):
            text += output.outputs[0].text
            token_ids += output.outputs[0].token_ids
            times += 1
        whole = (await last(llm.generate("hello", params, request_id="0"))).outputs[0]
        assert (text, token_ids) == (whole.text, whole.token_ids)
        assert times > 1 or stop

    runner = SlowRunner(LIMITS)
    runner.seconds = 0.003
    serve(main, runner)


def test_final_only_yields_once():
    async def main(llm):
        outputs = [o async for o in llm.generate("a", GREEDY, request_id="0", final_only=True)]
        assert [o.finished for o in outputs] == [True]

    serve(main)


def test_the_loop_goes_on_while_the_device_works():
    async def main(llm):
        longest, before = 0.0, time.perf_counter()
        task = asyncio.create_task(last(llm.generate("hello", GREEDY, request_id="0")))
        while not task.done():
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            longest, before = max(longest, now - before), now
        assert llm.stats().seconds.run >= 6 * 0.03
        # A loop that waited for a step would stand still for 30 ms at a time.
        assert longest < 0.025

    serve(main, SlowRunner(LIMITS))


def test_closing_or_cancelling_frees_everything():
    async def main(llm):
        stream = llm.generate("hello", LONG, request_id="closed")
        await anext(stream)
        await stream.aclose()
        task = asyncio.create_task(last(llm.generate("a dog", LONG, request_id="cancelled")))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        llm.generate("never begun", LONG, request_id="idle")
        while llm.stats().num_running:
            await asyncio.sleep(0.001)
        assert llm.stats().kv_cache_usage == 0

    serve(main, SlowRunner(LIMITS))


def test_abort_gives_the_reader_what_there_is():
    async def main(llm):
        stream = llm.generate("hello", LONG, request_id="x")
        first = await anext(stream)
        assert await llm.abort("x")
        end = await last(stream)
        assert end.outputs[0].finish_reason == "abort"
        assert end.outputs[0].token_ids[: len(first.outputs[0].token_ids)] == (
            first.outputs[0].token_ids
        )
        assert not await llm.abort("x")

    serve(main, SlowRunner(LIMITS))


def test_a_failed_step_fails_its_requests_and_no_others():
    runner = SlowRunner(LIMITS, fail_at=2)

    async def main(llm):
        first = [
            asyncio.create_task(last(llm.generate(text, LONG, request_id=text)))
            for text in TEXTS[:2]
        ]
        await asyncio.sleep(0)
        waiting = asyncio.create_task(last(llm.generate(TEXTS[2], GREEDY, request_id="waits")))
        for task in first:
            with pytest.raises(DeviceError, match="fake device failed"):
                await task
        found = await waiting
        ids = TOKENIZER.encode(TEXTS[2])
        assert found.outputs[0].token_ids == reference_greedy(ids, 6, LIMITS)
        assert llm.is_running
        assert llm.errored is None
        await last(llm.generate("and on", GREEDY, request_id="later"))

    serve(main, runner, max_num_seqs=2)


def test_an_engine_that_broke_says_so_to_all():
    async def main(llm):
        stream = llm.generate("hello", LONG, request_id="x")
        await anext(stream)
        llm._core.scheduler.schedule = lambda: 1 / 0
        with pytest.raises(EngineStoppedError, match="the engine broke: division by zero"):
            await last(stream)
        assert not llm.is_running
        assert isinstance(llm.errored, ZeroDivisionError)
        with pytest.raises(EngineStoppedError, match="broke"):
            llm.generate("more", LONG, request_id="y")
        llm._core.abort("x")  # nobody steps any more: for the check that nothing is held

    serve(main, SlowRunner(LIMITS))


def test_shutdown_finishes_what_runs_and_takes_nothing_new():
    async def main(llm):
        task = asyncio.create_task(last(llm.generate("hello", GREEDY, request_id="x")))
        late = llm.generate("late", GREEDY, request_id="late")
        await asyncio.sleep(0)
        closing = asyncio.create_task(llm.shutdown())
        await asyncio.sleep(0)
        with pytest.raises(EngineStoppedError, match="shutting down"):
            llm.generate("more", GREEDY, request_id="y")
        with pytest.raises(EngineStoppedError, match="shutting down"):
            await anext(late)
        assert (await task).outputs[0].finish_reason == "length"
        await closing

    serve(main, SlowRunner(LIMITS))


def test_shutdown_aborts_what_takes_too_long():
    async def main(llm):
        task = asyncio.create_task(last(llm.generate("hello", LONG, request_id="x")))
        await asyncio.sleep(0.1)
        await llm.shutdown(drain_seconds=0.05)
        assert (await task).outputs[0].finish_reason == "abort"

    serve(main, SlowRunner(LIMITS))


def test_what_cannot_be_served_is_refused_at_once():
    async def main(llm):
        with pytest.raises(RequestError, match="empty"):
            llm.generate([], GREEDY, request_id="x")
        with pytest.raises(RequestError, match="129 tokens"):
            llm.generate([1] * 129, GREEDY, request_id="x")
        with pytest.raises(RequestError, match="expected SamplingParams, not dict"):
            llm.generate("a", {"n": 1}, request_id="x")
        stream = llm.generate("a", LONG, request_id="x")
        await anext(stream)
        with pytest.raises(RequestError, match="'x' is being served"):
            llm.generate("b", GREEDY, request_id="x")
        await stream.aclose()
        assert (await last(llm.generate("b", GREEDY, request_id="x"))).finished

    serve(main)


def test_stats_count():
    async def main(llm):
        ids = [TOKENIZER.encode(text) for text in TEXTS]
        for number, prompt in enumerate(ids * 2):
            output = await last(llm.generate(prompt, GREEDY, request_id=str(number)))
            whole_pages = (len(prompt) - 1) // LIMITS.page_size * LIMITS.page_size
            assert output.num_cached_tokens == (whole_pages if number >= len(ids) else 0)
        stats = llm.stats()
        assert stats.prompt_tokens == 2 * sum(map(len, ids))
        assert stats.generation_tokens == 2 * 6 * len(ids)
        assert stats.num_batched_tokens == (
            stats.prompt_tokens - stats.prefix_cache_hits + 2 * 5 * len(ids)
        )
        assert stats.prefix_cache_queries == stats.prompt_tokens

    serve(main)
