"""What is wrong with a request is said in OpenAI's shape, with the parameter named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from server.helpers import NAME, error_of, live_server, serve

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "look"}}


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with live_server() as server, httpx.Client(base_url=server.url) as client:
        yield client


WRONG_VALUES = [
    # No silent turning of one type into another.
    ("max_tokens", "5"),
    ("max_tokens", 5.0),
    ("max_tokens", True),
    ("temperature", "hot"),
    ("temperature", True),
    ("stream", "yes"),
    ("stream", 1),
    ("echo", 0),
    ("n", 1.5),
    ("seed", "1"),
    ("user", 3),
    ("prompt", 3),
    ("prompt", []),
    ("prompt", [[]]),
    ("prompt", ["a", 1]),
    ("prompt", [1, True]),
    ("prompt", [1, [2]]),
    ("prompt", [-1]),
    ("prompt", None),
    ("stop", 3),
    ("stop", ""),
    ("stop", ["a", ""]),
    ("stop", ["a"] * 65),
    ("logit_bias", {"a": 1}),
    ("logit_bias", {"1": 101}),
    ("logit_bias", {"1": "x"}),
    ("logit_bias", [1]),
    ("stop_token_ids", ["a"]),
    ("stream_options", True),
    # Out of range.
    ("max_tokens", -1),
    ("n", 0),
    ("n", 129),
    ("temperature", -0.1),
    ("top_p", 0),
    ("top_p", 1.1),
    ("top_k", -2),
    ("min_p", 2),
    ("presence_penalty", 3),
    ("frequency_penalty", -3),
    ("repetition_penalty", 0),
    ("repetition_penalty", 1e-30),
    ("prompt", [2**40]),
    ("stop_token_ids", [2**63]),
    ("seed", 2**63),
    ("logprobs", 21),
    ("prompt_logprobs", -1),
    ("min_tokens", 17),
    ("stop_token_ids", [10**6]),
    ("logit_bias", {"999999": 1}),
    ("prompt", [10**6]),
    ("priority", 1),
    ("stream_options", {"include_usage": True}),
    # What llmir does not have.
    ("suffix", "end"),
    ("best_of", 2),
    ("best_of", True),
    ("best_of", 1.0),
    ("logits_processors", []),
    ("truncate_prompt_tokens", 5),
]


@pytest.mark.parametrize(("name", "value"), WRONG_VALUES, ids=lambda v: str(v)[:24])
def test_a_wrong_parameter_is_named(client, name, value):
    error = error_of(client.post(COMPLETIONS, json={"prompt": "the", name: value}))
    assert error["param"] == name
    assert name in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("request_body", "param"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": ["hello"]}, "messages[0]"),
        ({"messages": [{"content": "hello"}]}, "messages[0].role"),
        ({"messages": [*HELLO, {"role": "user"}]}, "messages[1].content"),
        ({"messages": [{"role": "king", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]},
            "messages[0].content[0].text",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0].image_url",
        ),
        ({"messages": [{"role": "user", "content": "a", "colour": 1}]}, "messages[0].colour"),
        ({"messages": HELLO, "max_completion_tokens": 0}, "max_completion_tokens"),
        (
            {"messages": HELLO, "max_completion_tokens": 2, "min_tokens": 3},
            "min_tokens",
        ),
        ({"messages": HELLO, "functions": []}, "functions"),
        ({"messages": HELLO, "store": True}, "store"),
        ({"messages": HELLO, "store": 0}, "store"),
        ({"messages": HELLO, "modalities": ["audio"]}, "modalities[0]"),
        ({"messages": HELLO, "modalities": []}, "modalities"),
        ({"messages": HELLO, "moderation": {}}, "moderation"),
        ({"messages": HELLO, "prompt_cache_retention": "24h"}, "prompt_cache_retention"),
        ({"messages": HELLO, "colour": None}, "colour"),
        ({"messages": HELLO, "tools": [{**TOOL, "colour": None}]}, "tools[0].colour"),
        ({"messages": HELLO, "chat_template": "{{ 1 }}"}, "chat_template"),
        ({"messages": HELLO, "logprobs": 5}, "logprobs"),
        ({"messages": HELLO, "metadata": {"a": 1}}, "metadata.a"),
        ({"messages": HELLO, "stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        (
            {
                "messages": HELLO,
                "stream": True,
                "stream_options": {"continuous_usage_stats": True},
            },
            "stream_options.continuous_usage_stats",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_part_of_a_chat_is_named(client, request_body, param):
    error = error_of(client.post(CHAT, json=request_body))
    assert error["param"] == param
    assert param in error["message"]


def test_unknown_parameters_are_refused():
    async def main(server):
        bodies = {COMPLETIONS: {"prompt": "a"}, CHAT: {"messages": HELLO}, "/tokenize": {}}
        for path, body in bodies.items():
            error = await server.error(path, {**body, "colour": "red"})
            assert (error["param"], error["code"]) == ("colour", "unknown_parameter")

    async def unsupported(server):
        error = await server.error(COMPLETIONS, {"prompt": "a", "use_beam_search": True})
        assert (error["param"], error["code"]) == ("use_beam_search", "unsupported_parameter")
        # Clients write null for what they leave out.
        await server.ok(COMPLETIONS, {"prompt": "a", "suffix": None, "best_of": 1, "n": None})
        await server.ok(CHAT, {"messages": HELLO, "max_tokens": 1, "prompt_cache_retention": None})

    serve(main)
    serve(unsupported)


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT, "/tokenize", "/health"])
def test_no_address_is_another_with_a_slash(path):
    async def main(server):
        for method in ("GET", "POST"):
            response = await server.client.request(method, path + "/", json={})
            error = error_of(response, 404)
            assert error["type"] == "invalid_request_error"

    serve(main)


OWNERS = {"metadata": {"a": "b"}, "safety_identifier": "a", "prompt_cache_key": "b", "store": False}


@pytest.mark.parametrize(
    ("path", "body", "without_effect"),
    [
        (COMPLETIONS, {"prompt": "a", "max_tokens": 4}, {"user": "me", "best_of": 1}),
        (
            CHAT,
            {"messages": HELLO, "max_tokens": 4},
            {
                **OWNERS,
                "user": "me",
                "service_tier": "default",
                "modalities": ["text"],
                "echo": False,
                "add_special_tokens": False,
                "continue_final_message": False,
            },
        ),
        (
            "/v1/responses",
            {"input": "hello", "max_output_tokens": 4},
            {
                **OWNERS,
                "user": "me",
                "service_tier": "auto",
                "background": False,
                "include": [],
                "tools": [],
                "truncation": "disabled",
                "parallel_tool_calls": False,
                "tool_choice": "none",
            },
        ),
    ],
    ids=["completions", "chat", "responses"],
)
def test_what_docs_say_has_no_effect_has_none(client, path, body, without_effect):
    body = {**body, "temperature": 0}
    kind = "output" if path.endswith("responses") else "choices"
    plain, other = (
        client.post(path, json={**body, **more}).raise_for_status().json()
        for more in ({}, without_effect)
    )
    for answer in (plain, other):
        if kind == "output":
            answer["output"][0].pop("id")
    assert plain[kind] == other[kind]
    docs = (Path(__file__).parents[2] / "docs" / "serve.md").read_text(encoding="utf-8")
    table = docs.partition("### Accepted without effect")[2].partition("## Outputs")[0]
    assert [name for name in without_effect if f"`{name}" not in table] == []
    used = {"store", "modalities", "best_of", "service_tier", "background", "include", "tools"}
    for name in used & without_effect.keys():
        error = error_of(client.post(path, json={**body, name: "other"}))
        assert error["param"] == name


def test_a_model_that_is_not_here():
    async def main(server):
        for path, body in ((COMPLETIONS, {"prompt": "a"}), (CHAT, {"messages": HELLO})):
            error = await server.error(path, {**body, "model": "gpt-9"}, 404)
            assert (error["param"], error["code"]) == ("model", "model_not_found")
            assert "'gpt-9'" in error["message"]
            assert NAME in error["message"]

    serve(main)


def test_a_prompt_that_is_too_long_names_the_numbers():
    async def main(server):
        error = await server.error(COMPLETIONS, {"prompt": [5] * 600})
        assert error["code"] == "context_length_exceeded"
        assert "600" in error["message"]
        assert "512" in error["message"]

    serve(main)


BAD_BODIES = [
    (b"", 400, "JSON body"),
    (b"{", 400, "not JSON"),
    (b"[1, 2", 400, "not JSON"),
    (b'{"prompt": "a", }', 400, "not JSON"),
    (b"[]", 400, "an object"),
    (b"null", 400, "an object"),
    (b'"text"', 400, "an object"),
    (b'{"prompt": "\xff\xfe"}', 400, "UTF-8"),
    ('{"prompt": "a"}'.encode("utf-16"), 400, "UTF-8"),
    (b'{"prompt": "a", "temperature": NaN}', 400, "NaN"),
    (b'{"prompt": "a", "temperature": -Infinity}', 400, "Infinity"),
    (b'{"prompt": "a", "temperature": 1e999}', 400, "temperature"),
    (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", 400, "digits"),
    (b'{"prompt": "\\ud800"}', 400, "surrogate"),
    (b'{"\\ud83d": 1}', 400, "surrogate"),
    (b'{"prompt": ' + b"[" * 5000 + b"]" * 5000 + b"}", 400, "deep"),
    (b'{"prompt": ' + b"[" * 100_000, 400, "deep"),
    (b'{"a":' * 70 + b"1" + b"}" * 70, 400, "deep"),
    (b'{"prompt": "' + b'\\"' * 200_000, 400, "not JSON"),
]


@pytest.mark.parametrize(
    ("body", "status", "words"), BAD_BODIES, ids=[f"{b[:16]!r}-{len(b)}" for b, _, _ in BAD_BODIES]
)
def test_a_body_that_is_no_json_object(client, body, status, words):
    for path in (COMPLETIONS, CHAT):
        headers = {"Content-Type": "application/json"}
        error = error_of(client.post(path, content=body, headers=headers), status)
        assert path == CHAT or words in error["message"]


def test_brackets_in_strings_are_not_depth():
    async def main(server):
        text = '[{"\\' * 100
        body = await server.ok("/tokenize", {"prompt": text})
        back = await server.ok("/detokenize", {"tokens": body["tokens"]})
        assert back == {"prompt": text}

    serve(main)


def test_escaped_surrogate_pairs_are_characters():
    async def main(server):
        content = json.dumps({"prompt": "😀", "return_token_strs": True}).encode()
        assert b"\\ud83d" in content
        response = await server.client.post(
            "/tokenize", content=content, headers={"Content-Type": "application/json"}
        )
        assert response.status_code == 200

    serve(main)


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonx"]
)
def test_a_body_must_call_itself_json(client, content_type):
    response = client.post(
        COMPLETIONS, content=b'{"prompt": "a"}', headers={"Content-Type": content_type}
    )
    assert "application/json" in error_of(response, 415)["message"]


def test_a_content_type_may_have_a_charset():
    async def main(server):
        response = await server.client.post(
            COMPLETIONS,
            content=b'{"prompt": "a"}',
            headers={"Content-Type": "Application/JSON; charset=utf-8"},
        )
        assert response.status_code == 200

    serve(main)


def test_addresses_and_methods_that_are_not_there():
    async def main(server):
        error_of(await server.client.get("/v1/nothing"), 404)
        response = await server.client.get(COMPLETIONS)
        error_of(response, 405)
        assert response.headers["allow"] == "POST"
        error_of(await server.client.delete("/v1/models"), 405)

    serve(main)


def test_a_bug_is_a_500_and_no_traceback(monkeypatch, caplog):
    async def main(server):
        def broken(*_args, **_options):
            raise ZeroDivisionError("nobody foresaw this")

        monkeypatch.setattr(server.llm, "generate", broken)
        with caplog.at_level("CRITICAL", logger="llmir.server"):
            error = await server.error(COMPLETIONS, {"prompt": "a"}, 500)
        assert error["type"] == "server_error"
        assert "foresaw" not in error["message"]

    serve(main)
