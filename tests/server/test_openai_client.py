"""The official client against a real port."""

from __future__ import annotations

import asyncio

import openai
import pytest
from engine.fake_runner import reference_greedy
from engine.helpers import TOKENIZER
from server.helpers import LIMITS, NAME, live_server, make_llm

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def server():
    with live_server(api_keys=("key",)) as server:
        yield server


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="key", max_retries=0) as client:
        yield client


def chat_tokens(max_tokens: int) -> list[int]:
    prompt = TOKENIZER.apply_chat_template(HELLO, tokenize=True)
    return reference_greedy(prompt, max_tokens, LIMITS)


def test_models(client):
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).id == NAME


def test_completions(client):
    ids = reference_greedy([5, 6, 7], 8, LIMITS)
    answer = client.completions.create(
        model=NAME, prompt=[5, 6, 7], max_tokens=8, temperature=0, logprobs=2
    )
    (choice,) = answer.choices
    assert choice.text == TOKENIZER.decode(ids)
    assert choice.finish_reason == "length"
    assert choice.logprobs.tokens == [TOKENIZER.token_text(i) for i in ids]
    assert answer.usage.completion_tokens == 8
    stream = client.completions.create(
        model=NAME,
        prompt=[5, 6, 7],
        max_tokens=8,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "".join(c.choices[0].text for c in chunks if c.choices) == choice.text
    assert chunks[-1].usage.completion_tokens == 8


def test_chat(client):
    answer = client.chat.completions.create(
        model=NAME,
        messages=HELLO,
        max_completion_tokens=6,
        temperature=0,
        logprobs=True,
        top_logprobs=2,
        extra_body={"top_k": 5, "return_token_ids": True},
        extra_headers={"X-Request-Id": "mine"},
    )
    (choice,) = answer.choices
    assert choice.message.content == TOKENIZER.decode(chat_tokens(6))
    assert choice.token_ids == chat_tokens(6)
    assert len(choice.logprobs.content) == 6
    assert len(choice.logprobs.content[0].top_logprobs) == 2
    assert answer.id == "chatcmpl-mine"


def test_an_answer_goes_back_as_the_clients_class_writes_it(client):
    options = {"model": NAME, "temperature": 0, "max_completion_tokens": 6}
    first = client.chat.completions.create(messages=HELLO, **options).choices[0].message
    assert first.model_dump()["annotations"] is None
    more = {"role": "user", "content": "and then?"}
    found = [
        client.chat.completions.create(messages=[*HELLO, said, more], **options)
        for said in (
            first.model_dump(),
            {"role": "assistant", "content": first.content},
        )
    ]
    assert found[0].choices[0].message == found[1].choices[0].message
    assert found[0].usage.prompt_tokens == found[1].usage.prompt_tokens
    function = {"name": "look", "arguments": "{}", "colour": None}
    call = {"id": "a", "type": "function", "function": function, "index": None}
    parts = [{"type": "text", "text": "go", "cache_control": None}]
    client.chat.completions.create(
        messages=[
            {"role": "user", "content": parts},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "a", "content": "done", "is_error": None},
        ],
        **options,
    )
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            messages=[{**first.model_dump(), "annotations": [1]}, more], **options
        )
    assert caught.value.param == "messages[0].annotations"


def test_chat_stream_helper(client):
    ids = chat_tokens(6)
    with client.chat.completions.stream(
        model=NAME, messages=HELLO, temperature=0, extra_body={"stop_token_ids": ids[-1:]}
    ) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(deltas) == final.choices[0].message.content
    assert final.choices[0].message.content == TOKENIZER.decode(ids[: ids.index(ids[-1])])
    assert final.choices[0].finish_reason == "stop"


def test_many_at_once_with_the_async_client(server):
    prompts = [[5, 6, number] for number in range(10, 30)]

    async def main():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="key") as client:

            async def one(prompt):
                stream = await client.completions.create(
                    model=NAME, prompt=prompt, max_tokens=12, temperature=0, stream=True
                )
                return "".join([chunk.choices[0].text async for chunk in stream])

            return await asyncio.gather(*map(one, prompts))

    expected = [TOKENIZER.decode(reference_greedy(p, 12, LIMITS)) for p in prompts]
    assert asyncio.run(main()) == expected


def test_errors_are_the_clients_own_classes(server, client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=NAME, messages=HELLO, temperature=-1)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-9", messages=HELLO)
    assert caught.value.code == "model_not_found"
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong") as stranger,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        stranger.models.list()
    assert caught.value.code == "invalid_api_key"


def test_an_error_in_a_stream_is_raised():
    with live_server(make_llm(), request_timeout_s=1e-6) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0)
        with client, pytest.raises(openai.InternalServerError) as caught:
            list(client.completions.create(model=NAME, prompt="a", stream=True))
        assert caught.value.code == "timeout"
