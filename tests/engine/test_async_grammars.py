"""Grammars and commands on their way to the step: compiled once, and failing alone."""

import asyncio
import threading
from collections import Counter

import pytest

from llmir.engine import SamplingParams, StructuredOutputsParams
from llmir.engine.core import EngineCore
from llmir.engine.structured_output import compiler
from llmir.errors import EngineStoppedError, RequestError

from .fake_runner import FakeRunner, small_limits
from .helpers import TOKENIZER
from .test_async_llm import GREEDY, last, serve

LIMITS = small_limits(
    vocab_size=TOKENIZER.vocab_size, max_model_len=128, num_pages=(2048,), max_num_batched_tokens=64
)


def choice(*texts: str) -> SamplingParams:
    return SamplingParams(
        temperature=0, max_tokens=20, structured_outputs=StructuredOutputsParams(choice=list(texts))
    )


async def prepared(llm, text, number):
    params = choice(text)
    grammar = await llm.prepare(params)
    stream = llm.generate("hello", params, request_id=str(number), grammar=grammar)
    return (await last(stream)).outputs[0].text


def test_more_grammars_than_are_kept_are_compiled_once_and_beside_the_loop(monkeypatch):
    monkeypatch.setattr(compiler, "CACHED_GRAMMARS", 2)
    compiled = Counter()
    compile = compiler.Grammar._compile

    def count(self):
        compiled[self.text, threading.current_thread().name.split("_")[0]] += 1
        return compile(self)

    monkeypatch.setattr(compiler.Grammar, "_compile", count)
    texts = [f"the {letter}" for letter in "abcdefghijkl"]

    async def main(llm):
        found = await asyncio.gather(*[prepared(llm, text, i) for i, text in enumerate(texts)])
        assert found == texts

    serve(main, FakeRunner(LIMITS), max_num_seqs=2)
    assert len(compiled) == len(texts)
    assert set(compiled.values()) == {1}
    assert {thread for _, thread in compiled} == {"llmir-grammar"}


def test_a_grammar_of_other_parameters_is_refused():
    async def main(llm):
        grammar = await llm.prepare(choice("a"))
        assert await llm.prepare(GREEDY) is None
        for other in (choice("b"), GREEDY):
            with pytest.raises(RequestError, match="compiled for other structured_outputs"):
                llm.generate("hello", other, request_id="x", grammar=grammar)

    serve(main, FakeRunner(LIMITS))


def test_who_waits_for_a_grammar_hears_that_the_engine_is_shut_down(monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr(compiler, "grammar_text", lambda form: gate.wait(20) and None)

    async def main(llm):
        # More than there are threads, so that the last is not begun.
        waiting = [asyncio.create_task(llm.prepare(choice(f"{i}"))) for i in range(64)]
        await asyncio.sleep(0.01)
        await llm.shutdown()
        with pytest.raises(EngineStoppedError, match="shutting down"):
            await waiting[-1]
        with pytest.raises(EngineStoppedError, match="shutting down"):
            await llm.prepare(choice("a"))
        for task in waiting:
            task.cancel()
        gate.set()
        await asyncio.gather(*waiting, return_exceptions=True)

    serve(main, FakeRunner(LIMITS))


@pytest.mark.parametrize("error", [RequestError("too long"), ZeroDivisionError("unforeseen")])
def test_a_request_that_the_step_cannot_take_fails_alone(monkeypatch, error):
    add = EngineCore._sequence

    def fail(self, request, index):
        if request.request_id == "bad" and index == 1:
            raise error
        return add(self, request, index)

    monkeypatch.setattr(EngineCore, "_sequence", fail)
    two = SamplingParams(temperature=0, max_tokens=6, n=2)

    async def main(llm):
        good = asyncio.create_task(last(llm.generate("hello", GREEDY, request_id="good")))
        with pytest.raises(type(error), match=str(error)):
            await last(llm.generate("hello", two, request_id="bad"))
        assert (await good).outputs[0].finish_reason == "length"
        assert llm.errored is None
        assert (await last(llm.generate("hello", two, request_id="next"))).finished

    serve(main, FakeRunner(LIMITS))
