"""/v1/responses: the same tokens as a chat's, in the events and shapes of OpenAI's client."""

from __future__ import annotations

import asyncio
import json
import time

import jsonschema
import openai
import pydantic
import pytest
from engine.fake_runner import reference_greedy
from engine.helpers import TOKENIZER
from openai.types.responses import Response, ResponseStreamEvent
from server.helpers import LIMITS, NAME, GatedRunner, SlowRunner, live_server, make_llm, serve

PATH = "/v1/responses"
HELLO = [{"role": "user", "content": "hello"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
EVENT = pydantic.TypeAdapter(ResponseStreamEvent)


def tokens_of(messages, max_tokens):
    prompt = TOKENIZER.apply_chat_template(messages, tokenize=True)
    return reference_greedy(prompt, max_tokens, LIMITS)


def text_of(messages, max_tokens):
    return TOKENIZER.decode(tokens_of(messages, max_tokens))


def events_of(text):
    """The JSON of a stream of named events; OpenAI's has no [DONE]."""
    events = []
    for block in text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
        EVENT.validate_python(events[-1])
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


@pytest.fixture(scope="module")
def server():
    with live_server() as server:
        yield server


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client:
        yield client


def test_a_text(client):
    answer = client.responses.create(
        model=NAME, input="hello", max_output_tokens=8, temperature=0, metadata={"a": "b"}
    )
    assert answer.output_text == text_of(HELLO, 8)
    assert answer.status == "incomplete"
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage.output_tokens == 8
    prompt = TOKENIZER.apply_chat_template(HELLO, tokenize=True)
    assert answer.usage.input_tokens == len(prompt)
    assert answer.usage.total_tokens == len(prompt) + 8
    assert (answer.max_output_tokens, answer.temperature, answer.store) == (8, 0, False)
    assert answer.metadata == {"a": "b"}


def test_an_answer_has_the_clients_shape():
    async def main(server):
        body = await server.ok(PATH, {"input": "hello", "max_output_tokens": 3})
        Response.model_validate(body)
        assert body["id"].startswith("resp_")
        (item,) = body["output"]
        assert item["id"].startswith("msg_")
        assert item["status"] == "incomplete"

    serve(main)


def test_instructions_and_a_conversation(client):
    first = client.responses.create(
        model=NAME, instructions="Be kind.", input="hello", max_output_tokens=4, temperature=0
    )
    system = {"role": "system", "content": "Be kind."}
    assert first.output_text == text_of([system, *HELLO], 4)
    second = client.responses.create(
        model=NAME,
        instructions="Be kind.",
        input=[
            *HELLO,
            *first.output,
            {
                "type": "message",
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "and"},
                    {"type": "input_text", "text": "then"},
                ],
            },
        ],
        max_output_tokens=4,
        temperature=0,
    )
    said = {"role": "assistant", "content": first.output_text}
    rest = {"role": "user", "content": "and\nthen"}
    assert second.output_text == text_of([system, *HELLO, said, rest], 4)


def test_an_answer_goes_back_as_the_clients_class_writes_it(client):
    options = {"model": NAME, "max_output_tokens": 4, "temperature": 0}
    first = client.responses.create(input="hello", **options)
    (item,) = [item.model_dump() for item in first.output]
    assert item["phase"] is None
    rest = {"role": "user", "content": "and then?"}
    second = client.responses.create(input=[*HELLO, item, rest], **options)
    said = {"role": "assistant", "content": first.output_text}
    assert second.output_text == text_of([*HELLO, said, rest], 4)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(input=[*HELLO, {**item, "phase": "commentary"}], **options)
    assert caught.value.param == "input[1].phase"


def test_a_stream_has_openais_events_in_their_order():
    async def main(server):
        request = {"input": "hello", "max_output_tokens": 12, "temperature": 0}
        whole = await server.ok(PATH, request)
        response = await server.post(PATH, {**request, "stream": True})
        assert response.headers["content-type"].startswith("text/event-stream")
        events = events_of(response.text)
        deltas = [e["delta"] for e in events if e["type"] == "response.output_text.delta"]
        assert len(deltas) > 3
        assert [event["type"].removeprefix("response.") for event in events] == [
            "created",
            "in_progress",
            "output_item.added",
            "content_part.added",
            *["output_text.delta"] * len(deltas),
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "incomplete",
        ]
        text = text_of(HELLO, 12)
        assert "".join(deltas) == text
        done, part, item, last = events[-4:]
        assert done["text"] == part["part"]["text"] == item["item"]["content"][0]["text"] == text
        assert events[0]["response"]["status"] == "in_progress"
        assert events[0]["response"]["output"] == []
        for body in (whole, last["response"]):
            body.pop("id")
            body.pop("created_at")
            body["output"][0].pop("id")
            body["usage"].pop("input_tokens_details")  # the second finds its prompt cached
        assert last["response"] == whole

    serve(main, make_llm(SlowRunner()))


def test_the_clients_stream_helper():
    ids = tokens_of(HELLO, 12)
    generation = {"eos_token_id": ids[-1]}
    with (
        live_server(make_llm(generation=generation)) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client,
    ):
        with client.responses.stream(model=NAME, input="hello", temperature=0) as stream:
            deltas = [e.delta for e in stream if e.type == "response.output_text.delta"]
            final = stream.get_final_response()
        assert "".join(deltas) == final.output_text == TOKENIZER.decode(ids[: ids.index(ids[-1])])
        assert final.status == "completed"
        assert final.output[0].status == "completed"
        assert final.incomplete_details is None


def test_the_async_client_reads_a_stream(server):
    async def main():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="-") as client:
            stream = await client.responses.create(
                model=NAME, input="hello", max_output_tokens=6, temperature=0, stream=True
            )
            return [event async for event in stream]

    events = asyncio.run(main())
    assert events[-1].response.output_text == text_of(HELLO, 6)


class City(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    days: bool


def test_a_form(client):
    format = {"type": "json_schema", "name": "city", "strict": True, "schema": SCHEMA}
    answer = client.responses.create(model=NAME, input="hello", text={"format": format})
    jsonschema.validate(json.loads(answer.output_text), SCHEMA)
    assert answer.status == "completed"
    assert answer.text.format.schema_ == SCHEMA
    parsed = client.responses.parse(model=NAME, input="hello", text_format=City)
    assert isinstance(parsed.output_parsed, City)
    answer = client.responses.create(
        model=NAME, input="hello", text={"format": {"type": "json_object"}}, max_output_tokens=5
    )
    assert answer.output_text.lstrip()[0] == "{"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"role": "king", "content": "a"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, None),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, None),
        ({"input": "a " * 600}, "input"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"store": True}, "store"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"truncation": "auto"}, "truncation"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"reasoning": {"effort": "low"}}, "reasoning"),
        ({"conversation": "c"}, "conversation"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        (
            {"text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "thing"}}}},
            "text.format.schema",
        ),
        ({"messages": HELLO}, "messages"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_what_cannot_be_had_is_named(client, fields, param, stream):
    body = {"input": "hello", "stream": stream, **fields}
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/responses", body=body, cast_to=object)
    assert caught.value.type == "invalid_request_error"
    if param is not None:
        assert caught.value.param == param
        assert param in caught.value.message


def test_a_model_that_is_not_here(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.responses.create(model="gpt-9", input="hello")
    assert caught.value.code == "model_not_found"


def test_a_stream_that_cannot_go_on_ends_with_failed():
    async def main(server):
        # Greedy: a drawn EOS would end it sooner.
        request = {"input": "hello", "stream": True, "temperature": 0}
        response = await server.post(PATH, request)
        assert response.status_code == 200
        *_, delta, last = events_of(response.text)
        assert delta["type"] == "response.output_text.delta"
        assert last["type"] == "response.failed"
        assert last["response"]["status"] == "failed"
        assert last["response"]["error"]["code"] == "server_error"
        assert last["response"]["output"][0]["status"] == "incomplete"

    serve(main, make_llm(SlowRunner()), request_timeout_s=0.5)


def test_an_end_of_the_server_is_a_failure():
    runner = GatedRunner(open_at_first=True)

    async def main(server):
        asked = asyncio.create_task(server.post(PATH, {"input": "hello", "stream": True}))
        end = time.monotonic() + 20
        while runner.num_begun < 4 and time.monotonic() < end:
            await asyncio.sleep(0.001)
        await server.llm.shutdown(drain_seconds=0)
        last = events_of((await asked).text)[-1]
        assert last["type"] == "response.failed"
        assert "shutting down" in last["response"]["error"]["message"]

    serve(main, make_llm(runner), check=False)
