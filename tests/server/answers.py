"""Requests whose answers are known: computed alone, on a fake model with all the pages it wants."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.fake_runner import FakeRunner, reference_greedy
from engine.helpers import TOKENIZER

from llmir.engine import LLM, SamplingParams, StructuredOutputsParams
from llmir.engine.outputs import CompletionOutput
from llmir.runtime.base import StepLimits

from .wire import Reply

TEXTS = [
    "the cat sat on the mat",
    "hello",
    "Paris is the capital of France",
    "größe 日本語 😀",
    "a",
]
END = "data: [DONE]"

FAILURES = {500: {"device_error", "internal_error"}, 503: {"overloaded"}, 504: {"timeout"}}
"""What a request may be told that is as it should be, and its error codes."""


@dataclass(frozen=True, slots=True)
class Case:
    """A request, without `stream`, and its choices by index.

    has_form: whether its output is structured.
    """

    path: str
    body: dict[str, Any]
    expected: list[CompletionOutput]
    has_form: bool


@dataclass(slots=True)
class Choice:
    """A choice as a client puts it together."""

    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    finish_reason: str | None = None


def make_cases(limits: StepLimits, count: int, seed: int) -> list[Case]:
    """As many random cases.  limits: those of the server, but for its pages."""
    rng = random.Random(seed)
    llm = LLM(FakeRunner(limits), TOKENIZER)
    return [_make_case(rng, llm, limits) for _ in range(count)]


def _make_case(rng: random.Random, llm: LLM, limits: StepLimits) -> Case:
    fields, has_form = _fields(rng)
    body = {**fields, "return_token_ids": True}
    form = StructuredOutputsParams(**fields.pop("structured_outputs")) if has_form else None
    if rng.random() < 0.3:
        messages = [{"role": "user", "content": rng.choice(TEXTS)[:10]}]
        prompts: list[Any] = [llm.render_chat(messages)]
        if "logprobs" in body:
            body |= {"logprobs": True, "top_logprobs": body["logprobs"]}
        body["messages"] = messages
        path = "/v1/chat/completions"
    else:
        as_text = rng.random() < 0.5
        prompts = [_prompt(rng, limits, as_text) for _ in range(rng.choice([1, 1, 1, 1, 3]))]
        body["prompt"] = prompts if len(prompts) > 1 else prompts[0]
        path = "/v1/completions"
    outputs = llm.generate(prompts, SamplingParams(**fields, structured_outputs=form))
    if form is None and set(fields) == {"max_tokens", "temperature", "ignore_eos"}:
        for output in outputs:
            prompt = output.prompt_token_ids
            room = min(fields["max_tokens"], limits.max_model_len - len(prompt))
            wanted = reference_greedy(prompt, room, limits)
            assert output.outputs[0].token_ids == wanted
    return Case(path, body, [part for output in outputs for part in output.outputs], has_form)


def _prompt(rng: random.Random, limits: StepLimits, as_text: bool) -> str | list[int]:
    if as_text:
        return rng.choice(TEXTS)
    beginning = [7, 8, 9, 10] * 5  # of which pages are shared
    own = [rng.randrange(3, limits.vocab_size) for _ in range(rng.randint(1, 12))]
    return beginning[: rng.choice([0, 9, 20])] + own


def _fields(rng: random.Random) -> tuple[dict[str, Any], bool]:
    """What completions, chats and SamplingParams have by the same names, and whether a form."""
    fields: dict[str, Any] = {"max_tokens": rng.choice([1, 4, 8, 12, 16, 40])}
    if rng.random() < 0.6:
        fields |= {"temperature": 0.0, "ignore_eos": True}
    else:
        fields |= {"temperature": 0.9, "seed": rng.randrange(1000), "top_p": 0.95}
    for chance, more in (
        (0.15, {"logprobs": rng.randrange(4)}),
        (0.15, {"n": rng.choice([2, 3])}),
        (0.1, {"stop": ["e", " t"]}),
        (0.1, {"top_k": 5}),
        (0.05, {"repetition_penalty": 1.3}),
        (0.1, {"logit_bias": {40: 100}}),  # the same token again and again, as drafts have it
    ):
        if rng.random() < chance:
            fields |= more
    has_form = rng.random() < 0.08
    if has_form:
        fields["structured_outputs"] = {"choice": ["the cat", "a dog", "no"]}
    return fields, has_form


# -- checking --------------------------------------------------------------------------------


def check(case: Case, reply: Reply, stream: bool) -> str:
    """Whether a reply is the answer, or says as it should why not; which of these it is."""
    if reply.status != 200:
        assert reply.error["code"] in FAILURES[reply.status], reply
        assert reply.status != 503 or int(reply.headers["retry-after"]) >= 1
        return str(reply.status)
    if not stream:
        _assert_whole(case, collect([reply.json()]))
        return "form" if case.has_form else "whole"
    events = reply.body.decode().split("\n\n")
    assert events.pop() == ""
    if events[-1] == END:
        _assert_whole(case, collect(map(_data, events[:-1])))
        return "stream"
    error = _data(events.pop())["error"]
    assert END not in events
    assert error["code"] in FAILURES[500] | FAILURES[504], error
    _assert_beginning(case, collect(map(_data, events)))
    return "stream with an error"


def _data(event: str) -> Any:
    assert event.startswith("data: ")
    return json.loads(event.removeprefix("data: "))


def collect(bodies: Any) -> dict[int, Choice]:
    """The choices of a whole answer, or of the chunks of a stream."""
    choices: dict[int, Choice] = {}
    for body in bodies:
        assert "error" not in body, body
        for given in body["choices"]:
            choice = choices.setdefault(given["index"], Choice())
            part = given.get("message") or given.get("delta") or given
            text = part.get("content", part.get("text")) or ""
            assert choice.finish_reason is None or not text
            choice.text += text
            choice.token_ids += tuple(given.get("token_ids", ()))
            choice.logprobs += _logprobs(given)
            if given["finish_reason"] is not None:
                assert choice.finish_reason is None, "a choice ends twice"
                choice.finish_reason = given["finish_reason"]
    return choices


def _logprobs(given: dict[str, Any]) -> tuple[float, ...]:
    found = given["logprobs"]
    if found is None:
        return ()
    if "content" in found:
        return tuple(entry["logprob"] for entry in found["content"])
    return tuple(found["token_logprobs"])


def _known(output: CompletionOutput) -> Choice:
    entries = zip(output.logprobs or (), output.token_ids, strict=False)
    return Choice(
        output.text,
        tuple(output.token_ids),
        tuple(found[token].logprob for found, token in entries),
        output.finish_reason,
    )


def _assert_whole(case: Case, found: dict[int, Choice]) -> None:
    assert [found[index] for index in sorted(found)] == [_known(one) for one in case.expected], case


def _assert_beginning(case: Case, found: dict[int, Choice]) -> None:
    wanted: Sequence[Choice] = [_known(one) for one in case.expected]
    for index, choice in found.items():
        whole = wanted[index]
        assert choice.finish_reason in (None, whole.finish_reason), case
        assert whole.text.startswith(choice.text), case
        assert whole.token_ids[: len(choice.token_ids)] == choice.token_ids, case
        assert whole.logprobs[: len(choice.logprobs)] == choice.logprobs, case
