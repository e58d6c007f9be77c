"""/v1/completions: the fake model's tokens, in OpenAI's shapes."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import numpy as np
import pytest
from engine.fake_runner import reference_greedy, reference_row
from engine.helpers import TOKENIZER
from openai.types import Completion
from server.helpers import LIMITS, NAME, GatedRunner, events_of, make_llm, serve

PATH = "/v1/completions"
GREEDY = {"temperature": 0, "max_tokens": 6}


def answer_to(prompt: str | list[int], max_tokens: int = 6) -> list[int]:
    ids = TOKENIZER.encode(prompt) if isinstance(prompt, str) else prompt
    return reference_greedy(ids, max_tokens, LIMITS)


def log_softmax(token_ids: list[int]) -> np.ndarray:
    """Log-probabilities of what follows `token_ids`."""
    row = reference_row(token_ids, LIMITS.vocab_size, LIMITS.group_windows).astype(np.float64)
    return row - np.log(np.exp(row).sum())


def test_a_completion_is_what_the_model_says():
    async def main(server):
        body = await server.ok(PATH, {"model": NAME, "prompt": "the cat", **GREEDY})
        expected = answer_to("the cat")
        assert body["choices"] == [
            {
                "index": 0,
                "text": TOKENIZER.decode(expected),
                "logprobs": None,
                "finish_reason": "length",
                "stop_reason": None,
            }
        ]
        num_prompt = len(TOKENIZER.encode("the cat"))
        assert body["usage"] == {
            "prompt_tokens": num_prompt,
            "completion_tokens": 6,
            "total_tokens": num_prompt + 6,
            "prompt_tokens_details": {"cached_tokens": 0},
        }
        assert body["object"] == "text_completion"
        assert body["model"] == NAME
        parsed = Completion.model_validate(body, strict=True)
        assert parsed.id.startswith("cmpl-")

    serve(main)


@pytest.mark.parametrize(
    ("prompt", "each"),
    [
        ([5, 6, 7], [[5, 6, 7]]),
        ([[5, 6, 7], [8]], [[5, 6, 7], [8]]),
        (["the", "a dog"], ["the", "a dog"]),
        (["the"], ["the"]),
    ],
)
def test_all_forms_of_prompts(prompt, each):
    async def main(server):
        body = await server.ok(PATH, {"prompt": prompt, "n": 2, "return_token_ids": True, **GREEDY})
        assert [choice["index"] for choice in body["choices"]] == list(range(2 * len(each)))
        for place, one in enumerate(each):
            for choice in body["choices"][2 * place : 2 * place + 2]:
                assert choice["token_ids"] == answer_to(one)
                assert choice["text"] == TOKENIZER.decode(answer_to(one))
                ids = TOKENIZER.encode(one) if isinstance(one, str) else one
                assert choice["prompt_token_ids"] == ids
        assert body["usage"]["completion_tokens"] == 12 * len(each)

    serve(main)


def test_a_stream_adds_up_to_the_answer():
    request = {"prompt": ["the cat", "a dog"], "n": 2, "seed": 3, "max_tokens": 20}

    async def main(server):
        whole = await server.ok(PATH, request)
        plain = await server.events(PATH, request)
        assert all("usage" not in event for event in plain)
        events = await server.events(PATH, {**request, "stream_options": {"include_usage": True}})
        *chunks, last = events
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
        assert last["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"]
        assert all(chunk["usage"] is None for chunk in chunks)
        assert len({(e["id"], e["object"], e["created"], e["model"]) for e in events}) == 1
        for choice in whole["choices"]:
            parts = [
                part
                for chunk in chunks
                for part in chunk["choices"]
                if part["index"] == choice["index"]
            ]
            assert "".join(part["text"] for part in parts) == choice["text"]
            reasons = [part["finish_reason"] for part in parts]
            assert reasons == [None] * (len(parts) - 1) + [choice["finish_reason"]]

    serve(main)


def test_every_chunk_has_the_usage_so_far():
    async def main(server):
        events = await server.events(
            PATH,
            {
                "prompt": "the",
                "stream_options": {"include_usage": True, "continuous_usage_stats": True},
                **GREEDY,
            },
        )
        counts = [event["usage"]["completion_tokens"] for event in events]
        assert counts == sorted(counts)
        assert counts[-1] == 6

    serve(main)


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_and_echo(stream):
    prompt = "the cat sat"

    async def main(server):
        request = {"prompt": prompt, "logprobs": 2, "echo": True, **GREEDY}
        if stream:
            parts = [event["choices"][0] for event in await server.events(PATH, request)]
        else:
            parts = (await server.ok(PATH, request))["choices"]
        found = {
            name: [item for part in parts for item in part["logprobs"][name]]
            for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        }
        ids = TOKENIZER.encode(prompt)
        tokens = ids + answer_to(prompt)
        text = "".join(part["text"] for part in parts)
        assert text == prompt + TOKENIZER.decode(answer_to(prompt))
        assert found["tokens"] == [TOKENIZER.token_text(token) for token in tokens]
        assert found["token_logprobs"][0] is None
        assert found["top_logprobs"][0] is None
        for place in range(1, len(tokens)):
            expected = log_softmax(tokens[:place])
            assert found["token_logprobs"][place] == pytest.approx(
                expected[tokens[place]], abs=1e-5
            )
            likeliest = np.argsort(-expected, kind="stable")[:2]
            wanted = {TOKENIZER.token_text(int(i)) for i in likeliest}
            wanted.add(TOKENIZER.token_text(tokens[place]))
            assert set(found["top_logprobs"][place]) == wanted
        assert found["text_offset"][0] == 0
        widths = [later - earlier for earlier, later in pairwise(found["text_offset"])]
        assert widths == [len(token) for token in found["tokens"][:-1]]

    serve(main)


def test_echo_alone_computes_the_prompt():
    async def main(server):
        body = await server.ok(
            PATH, {"prompt": [5, 6, 7], "echo": True, "max_tokens": 0, "logprobs": 0}
        )
        (choice,) = body["choices"]
        assert choice["text"] == TOKENIZER.decode([5, 6, 7], skip_special_tokens=False)
        assert len(choice["logprobs"]["tokens"]) == 3
        assert choice["finish_reason"] == "length"
        assert body["usage"]["completion_tokens"] == 0
        expected = [log_softmax([5])[6], log_softmax([5, 6])[7]]
        assert choice["logprobs"]["token_logprobs"][1:] == pytest.approx(expected, abs=1e-5)
        body = await server.ok(PATH, {"prompt": "the", "max_tokens": 0})
        assert body["choices"][0]["text"] == ""

    serve(main)


def test_prompt_logprobs():
    async def main(server):
        body = await server.ok(PATH, {"prompt": [5, 6], "prompt_logprobs": 1, **GREEDY})
        first, second = body["choices"][0]["prompt_logprobs"]
        assert first is None
        assert second["6"]["logprob"] == pytest.approx(log_softmax([5])[6], abs=1e-5)
        assert second["6"]["decoded_token"] == TOKENIZER.token_text(6)
        likeliest = int(log_softmax([5]).argmax())
        assert second[str(likeliest)]["rank"] == 1
        assert set(second) == {"6", str(likeliest)}
        error = await server.error(PATH, {"prompt": [5, 6], "prompt_logprobs": 1, "stream": True})
        assert error["param"] == "prompt_logprobs"

    serve(main)


@pytest.mark.parametrize(("num_top", "num_prompt"), [(5, 1), (1, 5), (0, 3), (3, 0)])
def test_echo_and_the_prompts_own_have_each_as_many_candidates_as_were_asked_for(
    num_top, num_prompt
):
    async def main(server):
        asked = {"echo": True, "logprobs": num_top, "prompt_logprobs": num_prompt}
        body = await server.ok(PATH, {"prompt": [5, 6], "max_tokens": 1, **asked})
        (choice,) = body["choices"]
        ranked = [int(token) for token in (-log_softmax([5])).argsort(kind="stable")]
        assert set(choice["prompt_logprobs"][1]) == {str(i) for i in [*ranked[:num_prompt], 6]}
        # By their texts, of which tokens of half a character have the same.
        texts = {TOKENIZER.token_text(i) for i in [*ranked[:num_top], 6]}
        assert set(choice["logprobs"]["top_logprobs"][1]) == texts

    serve(main)


def test_stop_strings_and_ids():
    ids = answer_to("the cat", 30)
    text = TOKENIZER.decode(ids)
    stop = text[5:7]

    async def main(server):
        request = {"prompt": "the cat", "temperature": 0, "max_tokens": 30}
        (choice,) = (await server.ok(PATH, {**request, "stop": stop}))["choices"]
        assert choice["text"] == text[: text.index(stop)]
        assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
        (choice,) = (
            await server.ok(PATH, {**request, "stop": [stop], "include_stop_str_in_output": True})
        )["choices"]
        assert choice["text"] == text[: text.index(stop) + len(stop)]
        request["stop_token_ids"] = [ids[4]]
        (choice,) = (await server.ok(PATH, {**request, "return_token_ids": True}))["choices"]
        assert choice["token_ids"] == ids[: ids.index(ids[4]) + 1]
        assert choice["stop_reason"] == ids[4]

    serve(main)


def test_parameters_reach_the_sampler():
    async def main(server):
        async def text(**params):
            body = await server.ok(PATH, {"prompt": "the cat", "max_tokens": 12, **params})
            return body["choices"][0]["text"]

        greedy = TOKENIZER.decode(answer_to("the cat", 12))
        assert await text(temperature=0) == greedy
        assert await text(top_k=1) == greedy
        assert await text(min_p=1.0) == greedy
        assert await text(top_p=1e-6) == greedy
        assert await text(seed=5) == await text(seed=5)
        assert len({await text(seed=seed) for seed in (-1, 0, 1, 2**63 - 1)}) == 4
        assert await text(logit_bias={"40": 100}) == TOKENIZER.decode([40] * 12)
        # A token that would come each time, but for the penalties.
        often = {"temperature": 0, "logit_bias": {"40": 8.5}}
        assert await text(**often) == TOKENIZER.decode([40] * 12)
        for penalty in ("repetition_penalty", "frequency_penalty", "presence_penalty"):
            penalised = await text(**often, **{penalty: 2})
            assert penalised.startswith(TOKENIZER.decode([40]))
            assert penalised != TOKENIZER.decode([40] * 12)
        few = await server.ok(PATH, {"prompt": "the", "temperature": 0, "max_tokens": 2})
        assert few["usage"]["completion_tokens"] == 2

    serve(main)


def test_the_models_defaults_are_those_of_its_generation_config():
    async def main(server):
        body = await server.ok(PATH, {"prompt": "the cat"})
        assert body["choices"][0]["text"] == TOKENIZER.decode(answer_to("the cat", 9))
        body = await server.ok(PATH, {"prompt": "the cat", "temperature": 1.0, "seed": 1})
        assert body["choices"][0]["text"] != TOKENIZER.decode(answer_to("the cat", 9))

    serve(main, make_llm(generation={"do_sample": False, "max_new_tokens": 9}))


def test_sixteen_tokens_are_openais_default():
    async def main(server):
        body = await server.ok(PATH, {"prompt": "the cat", "ignore_eos": True})
        assert body["usage"]["completion_tokens"] == 16

    serve(main)


def test_eos_ends_an_answer_unless_it_is_ignored():
    ids = answer_to([5, 6, 7], 30)

    async def main(server):
        request = {"prompt": [5, 6, 7], "temperature": 0, "max_tokens": 30}
        body = await server.ok(PATH, {**request, "return_token_ids": True})
        assert body["choices"][0]["token_ids"] == ids[: ids.index(ids[3]) + 1]
        assert body["choices"][0]["finish_reason"] == "stop"
        body = await server.ok(PATH, {**request, "ignore_eos": True})
        assert body["usage"]["completion_tokens"] == 30
        body = await server.ok(PATH, {**request, "min_tokens": 10})
        assert body["usage"]["completion_tokens"] >= 10

    serve(main, make_llm(generation={"eos_token_id": ids[3]}))


def test_a_cached_prompt_is_counted():
    prompt = list(range(5, 45))

    async def main(server):
        await server.ok(PATH, {"prompt": prompt, **GREEDY})
        body = await server.ok(PATH, {"prompt": prompt, **GREEDY})
        cached = body["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert 32 <= cached < 40

    serve(main)


def test_priorities():
    """Of two that wait, the one with the lower number is begun first."""
    runner = GatedRunner()

    async def main(server):
        request = {"max_tokens": 1, "ignore_eos": True}
        first = asyncio.create_task(server.ok(PATH, {**request, "prompt": [5] * 4}))
        while not runner.num_begun:
            await asyncio.sleep(0.001)
        others = []
        for priority, prompt in ((3, [6] * 4), (-1, [7] * 4)):
            body = {**request, "prompt": prompt, "priority": priority}
            others.append(asyncio.create_task(server.ok(PATH, body)))
        while server.app.state.serving.num_sequences < 3:
            await asyncio.sleep(0.001)
        runner.gate.set()
        await asyncio.gather(first, *others)
        begun = [int(batch.token_ids[0]) for batch in runner.batches]
        assert begun == [5, 7, 6]

    serve(main, make_llm(runner, max_num_seqs=1, scheduling_policy="priority"))


def test_a_model_without_a_tokenizer_serves_token_ids():
    async def main(server):
        body = await server.ok(PATH, {"prompt": [5, 6], "return_token_ids": True, **GREEDY})
        assert body["choices"][0]["token_ids"] == answer_to([5, 6])
        assert body["choices"][0]["text"] == ""
        error = await server.error(PATH, {"prompt": "the"})
        assert "tokenizer" in error["message"]

    serve(main, make_llm(tokenizer=None))


def test_half_a_character_makes_no_chunk():
    """Bytes of a character come as tokens of their own; text comes when it is whole."""
    smile = TOKENIZER.encode("😀")
    assert len(smile) > 1

    async def main(server):
        request = {
            "prompt": [5],
            "logit_bias": {str(smile[0]): 100},
            "max_tokens": 1,
            "stream": True,
        }
        response = await server.post(PATH, request)
        (event,) = events_of(response.text)
        assert event["choices"][0]["text"] == "\ufffd"

    serve(main)
