"""Tools on chat, as the official client uses them."""

from __future__ import annotations

import asyncio
import dataclasses
import json

import jsonschema
import openai
import pytest
from engine.fake_runner import FakeRunner
from engine.helpers import TOKENIZER
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from server.helpers import LIMITS, NAME, ScriptedRunner, live_server, make_llm, serve

from llmir.server.protocol.tools import Tool
from llmir.server.tools.schema import calls_schema

LONG = dataclasses.replace(LIMITS, max_model_len=2048, num_pages=(1024,))
PATH = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]
CITY = {"$ref": "#/$defs/City"}
WEATHER = {
    "type": "object",
    "properties": {"city": CITY, "days": {"type": "integer", "minimum": 1, "maximum": 99}},
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"City": {"enum": ["Paris", "Rome"]}},
}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now", "description": "The time."}},
]
CALLS = (
    'I look.\n<tool_call>{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}'
    '</tool_call>\n<tool_call>{"name": "now", "arguments": {}}</tool_call>'
)
FOUND = [("get_weather", {"city": "Paris", "days": 3}), ("now", {})]


@pytest.fixture(scope="module")
def runner():
    return ScriptedRunner(LONG)


@pytest.fixture(scope="module")
def server(runner):
    with live_server(make_llm(runner)) as server:
        yield server


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client:
        yield client


def calls_of(message):
    calls = message.tool_calls or []
    assert len({call.id for call in calls}) == len(calls)
    assert all(call.type == "function" and call.id.startswith("call_") for call in calls)
    return [(call.function.name, json.loads(call.function.arguments)) for call in calls]


def request(**more):
    return {"model": NAME, "messages": HELLO, "tools": TOOLS, "temperature": 0, **more}


def test_calls(runner, client):
    runner.play(CALLS)
    (choice,) = client.chat.completions.create(**request()).choices
    assert choice.message.content == "I look."
    assert calls_of(choice.message) == FOUND
    assert choice.finish_reason == "tool_calls"


def test_calls_in_a_stream(runner, client, monkeypatch):
    monkeypatch.setattr(runner, "seconds", 0.01)  # or a slow client finds pieces joined
    runner.play(CALLS)
    deltas = [chunk.choices[0] for chunk in client.chat.completions.create(**request(stream=True))]
    assert "".join(choice.delta.content or "" for choice in deltas) == "I look."
    assert deltas[-1].finish_reason == "tool_calls"
    pieces = [piece for choice in deltas for piece in choice.delta.tool_calls or []]
    for index, (name, arguments) in enumerate(FOUND):
        first, *rest = [piece for piece in pieces if piece.index == index]
        assert first.id
        assert (first.type, first.function.name) == ("function", name)
        assert all(piece.id is None and piece.function.name is None for piece in rest)
        joined = "".join(piece.function.arguments for piece in [first, *rest])
        assert json.loads(joined) == arguments
    assert sum(piece.index == 0 for piece in pieces) > 3
    assert [piece.index for piece in pieces] == sorted(piece.index for piece in pieces)


def test_the_clients_stream_helper_comes_to_the_same(runner, client):
    runner.play(CALLS)
    with client.chat.completions.stream(**request()) as stream:
        events = list(stream)
        (choice,) = stream.get_final_completion().choices
    assert calls_of(choice.message) == FOUND
    assert choice.message.content == "I look."
    done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    assert [(event.name, json.loads(event.arguments)) for event in done] == FOUND


def test_the_async_client(runner, server):
    runner.play(CALLS)

    async def main():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="-") as client:
            return await client.chat.completions.create(**request())

    assert calls_of(asyncio.run(main()).choices[0].message) == FOUND


def test_an_answer_in_words(runner, client):
    runner.play("It is < 5 degrees \n")
    (choice,) = client.chat.completions.create(**request()).choices
    assert choice.message.content == "It is < 5 degrees \n"
    assert choice.message.tool_calls is None
    assert choice.finish_reason == "stop"


def test_one_call_where_one_is_asked_for(runner, client):
    for stream in (False, True):
        runner.play(CALLS)
        asked = request(parallel_tool_calls=False)
        if stream:
            with client.chat.completions.stream(**asked) as events:
                (choice,) = events.get_final_completion().choices
        else:
            (choice,) = client.chat.completions.create(**asked).choices
        assert calls_of(choice.message) == FOUND[:1]


def test_tools_that_are_not_to_be_called_are_not_shown(runner, client):
    runner.play(CALLS)
    plain = client.chat.completions.create(model=NAME, messages=HELLO, temperature=0)
    runner.play(CALLS)
    none = client.chat.completions.create(**request(tool_choice="none"))
    assert none.choices[0].message.content == plain.choices[0].message.content == CALLS
    assert none.usage.prompt_tokens == plain.usage.prompt_tokens


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("parallel", [True, False], ids=["several", "one"])
def test_a_required_call_keeps_to_its_schema(stream, parallel):
    async def main(server):
        for seed in range(6):
            body = request(
                tool_choice="required", seed=seed, temperature=1, parallel_tool_calls=parallel
            )
            # The longer a random list goes on, the less a comma is worth.
            body["logit_bias"] = {str(TOKENIZER.encode("]")[0]): 6}
            message, reason = await _answer(server, body, stream)
            assert reason == "tool_calls"
            assert not message["content"]
            calls = message["tool_calls"]
            assert len(calls) == 1 or parallel
            for call in calls:
                arguments = json.loads(call["function"]["arguments"])
                if call["function"]["name"] == "get_weather":
                    jsonschema.validate(arguments, WEATHER)
                else:
                    assert call["function"]["name"] == "now"
                    assert arguments == {}

    serve(main, make_llm(FakeRunner(LONG)))


def test_references_keep_pointing_into_their_own_schema():
    # A property may be called as a keyword is.
    inner = {"properties": {"default": {"$ref": "#/$defs/City"}, "$ref": {"type": "string"}}}
    tool = {
        "name": "f",
        "parameters": {**inner, "enum": [{"$ref": "#"}], "$defs": WEATHER["$defs"]},
    }
    schema = calls_schema([Tool(type="function", function=tool)], several=True)
    moved = schema["$defs"]["function_0"]
    assert moved["properties"]["default"] == {"$ref": "#/$defs/function_0/$defs/City"}
    assert moved["properties"]["$ref"] == {"type": "string"}
    assert moved["enum"] == [{"$ref": "#"}]
    validator = jsonschema.Draft202012Validator(
        {**schema, "$defs": {"function_0": inner_only(moved)}}
    )
    assert validator.is_valid([{"name": "f", "arguments": {"default": "Rome"}}])
    assert not validator.is_valid([{"name": "f", "arguments": {"default": "Bonn"}}])


def inner_only(schema):
    return {key: value for key, value in schema.items() if key != "enum"}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_named_call_is_that_one(stream):
    choice = {"type": "function", "function": {"name": "get_weather"}}

    async def main(server):
        for seed in range(3):
            body = request(tool_choice=choice, seed=seed, temperature=1)
            message, reason = await _answer(server, body, stream)
            assert reason == "stop"
            (call,) = message["tool_calls"]
            assert call["function"]["name"] == "get_weather"
            jsonschema.validate(json.loads(call["function"]["arguments"]), WEATHER)

    serve(main, make_llm(FakeRunner(LONG)))


async def _answer(server, body, stream):
    if not stream:
        answer = await server.ok(PATH, body)
        ChatCompletion.model_validate(answer, strict=True)
        return answer["choices"][0]["message"], answer["choices"][0]["finish_reason"]
    message = {"content": "", "tool_calls": []}
    for event in await server.events(PATH, body):
        ChatCompletionChunk.model_validate(event, strict=True)
        (choice,) = event["choices"]
        message["content"] += choice["delta"].get("content", "")
        for piece in choice["delta"].get("tool_calls", ()):
            if "id" in piece:
                assert piece["index"] == len(message["tool_calls"])
                message["tool_calls"].append({"function": {**piece["function"]}})
            else:
                call = message["tool_calls"][piece["index"]]
                call["function"]["arguments"] += piece["function"]["arguments"]
    return message, choice["finish_reason"]


CONVERSATION = [
    *HELLO,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    {"role": "tool", "tool_call_id": "call_1", "content": "warm"},
]


async def prompt_of(server, **more):
    body = await server.ok(PATH, request(return_token_ids=True, max_tokens=1, **more))
    return TOKENIZER.decode(body["prompt_token_ids"], skip_special_tokens=False)


def test_a_template_that_knows_tools_renders_them():
    template = (
        "{% if tools %}{{ tools | tojson }}<tool_call>{% endif %}{% for m in messages %}"
        "<{{ m.role }}>{{ m.content }}{% for c in m.tool_calls or [] %}"
        "{{ c.function.name }}({{ c.function.arguments.city }}){% endfor %}"
        "{{ m.tool_call_id }}{% endfor %}"
    )

    async def main(server):
        assert await prompt_of(server, messages=CONVERSATION) == (
            f"{json.dumps(TOOLS)}<tool_call><user>hello<assistant>get_weather(Rome)"
            "<tool>sunnycall_1<tool>warmcall_1"
        )

    serve(main, make_llm(FakeRunner(LONG)), chat_template=template)


def test_a_template_that_knows_none_is_told_in_words():
    async def main(server):
        system = {"role": "system", "content": "Be kind."}
        body = {"messages": [system, *CONVERSATION], "return_token_ids": True, "max_tokens": 1}
        tools = [{"type": "function", "function": {"name": "now"}}]
        answer = await server.ok(PATH, {**body, "tools": tools})
        text = TOKENIZER.decode(answer["prompt_token_ids"], skip_special_tokens=False)
        first, user, assistant, result, _ = text.split("<|im_start|>")[1:]
        assert first.startswith("system\nBe kind.\n\n")
        assert '<tools>[{"name": "now"}]</tools>' in first
        assert user == "user\nhello<|im_end|>\n"
        assert assistant == (
            'assistant\n<tool_call>[{"name": "get_weather", "arguments": {"city": "Rome"}}]'
            "</tool_call><|im_end|>\n"
        )
        assert result == (
            "user\n<tool_response>\nsunny\n</tool_response>\n<tool_response>\nwarm\n"
            "</tool_response><|im_end|>\n"
        )

    serve(main, make_llm(FakeRunner(LONG)))


def test_a_parser_that_is_asked_for():
    async def main(server):
        runner.play('[TOOL_CALLS]get_weather{"city": "Rome"}')
        message, _ = await _answer(server, request(), False)
        (call,) = message["tool_calls"]
        assert json.loads(call["function"]["arguments"]) == {"city": "Rome"}
        assert call["id"].isalnum()
        assert len(call["id"]) == 9  # as Mistral's templates want it

    runner = ScriptedRunner(LONG)
    serve(main, make_llm(runner), tool_call_parser="mistral")


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tools": None, "tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "always"}, "tool_choice"),
        (
            {"tool_choice": {"type": "function", "function": {"name": "rob"}}},
            "tool_choice.function.name",
        ),
        ({"tools": [TOOLS[1], TOOLS[1]]}, "tools[1].function.name"),
        ({"tools": [{"type": "retrieval"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        (
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {"name": "a", "parameters": {"type": "thing"}},
                    }
                ],
                "tool_choice": "required",
            },
            "tools",
        ),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [
                            {"type": "function", "function": {"name": "a", "arguments": "{"}}
                        ],
                    }
                ]
            },
            "messages[0].tool_calls[0].function.arguments",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_named(more, param):
    async def main(server):
        error = await server.error(PATH, request(**more))
        assert error["param"] == param
        assert param in error["message"]

    serve(main, make_llm(FakeRunner(LONG)))


def test_a_format_that_nobody_knows_can_still_be_required():
    async def main(server):
        error = await server.error(PATH, request())
        assert error["param"] == "tools"
        assert "--tool-call-parser" in error["message"]
        named = {"type": "function", "function": {"name": "get_weather"}}
        message, _ = await _answer(server, request(tool_choice=named), False)
        assert message["tool_calls"][0]["function"]["name"] == "get_weather"

    serve(main, make_llm(FakeRunner(LONG)), chat_template="{{ tools }}{{ messages[0].content }}")
