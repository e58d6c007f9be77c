"""Outputs of a form: OpenAI's response_format and vLLM's parameters, on a model of random tokens."""

from __future__ import annotations

import asyncio
import json
import re
import threading

import jsonschema
import pytest
from server.helpers import make_llm, serve

from llmir.engine.structured_output import Constraint, GrammarCompiler

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Paris", "Rome"]},
        "people": {"type": "integer", "minimum": 1, "maximum": 999},
    },
    "required": ["city", "people"],
    "additionalProperties": False,
}
GRAMMAR = 'start: "yes" | "no" DIGIT\nDIGIT: /[0-9]/'
FORMAT = {"type": "json_schema", "json_schema": {"name": "city", "strict": True, "schema": SCHEMA}}
SCHEMA_PARAM = "response_format.json_schema.schema"


def text_of(body: dict) -> str:
    (choice,) = body["choices"]
    assert choice["finish_reason"] == "stop"
    return choice["text"] if "text" in choice else choice["message"]["content"]


def is_json(text: str) -> bool:
    jsonschema.validate(json.loads(text), SCHEMA)
    return True


ASKED = [
    ({"response_format": FORMAT}, is_json),
    ({"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}}, is_json),
    ({"structured_outputs": {"json": json.dumps(SCHEMA), "disable_fallback": False}}, is_json),
    ({"guided_json": SCHEMA, "guided_whitespace_pattern": "[ ]"}, is_json),
    ({"guided_json": json.dumps(SCHEMA)}, is_json),
    ({"guided_regex": "[a-f]{3}-[0-9]{2}"}, re.compile("[a-f]{3}-[0-9]{2}").fullmatch),
    ({"structured_outputs": {"choice": ["red", "blue"]}}, ["red", "blue"].__contains__),
    ({"guided_choice": ["red", "blue"]}, ["red", "blue"].__contains__),
    ({"guided_grammar": GRAMMAR}, re.compile("yes|no[0-9]").fullmatch),
]


@pytest.mark.parametrize("asked", range(len(ASKED)), ids=lambda i: next(iter(ASKED[i][0])))
def test_an_output_has_the_form_that_was_asked_for(asked):
    fields, holds = ASKED[asked]

    async def main(server):
        for path, prompt in ((COMPLETIONS, {"prompt": "a"}), (CHAT, {"messages": HELLO})):
            for seed in range(3):
                request = {**prompt, **fields, "seed": seed, "max_tokens": 200}
                text = text_of(await server.ok(path, request))
                assert holds(text), text
                events = await server.events(path, request)
                parts = [event["choices"][0] for event in events]
                assert text == "".join(
                    part["text"] if "text" in part else part["delta"].get("content", "")
                    for part in parts
                )

    serve(main)


def test_any_object_and_any_text():
    async def main(server):
        for form in (
            {"type": "json_object"},
            {"type": "json_schema", "json_schema": {"name": "any"}},
        ):
            request = {"messages": HELLO, "response_format": form, "seed": 1, "max_tokens": 400}
            # A random model may not come to the object's end.
            body = await server.ok(CHAT, {**request, "logit_bias": {"92": 4}})
            assert body["choices"][0]["message"]["content"].lstrip()[0] == "{"
        plain = {"messages": HELLO, "temperature": 0, "max_tokens": 9}
        text = {"response_format": {"type": "text"}}
        same = [await server.ok(CHAT, {**plain, **more}) for more in ({}, text)]
        assert same[0]["choices"] == same[1]["choices"]

    serve(main)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"guided_regex": "(a"}, "guided_regex", "regex"),
        ({"guided_json": "{"}, "guided_json", "JSON"),
        ({"guided_json": {"type": "thing"}}, "guided_json", "thing"),
        ({"guided_grammar": "start: nothing"}, "guided_grammar", "nothing"),
        (
            {"guided_json": {"$ref": "#"}},
            "guided_json",
            "a $ref or a rule that leads back to itself",
        ),
        ({"guided_choice": []}, "guided_choice", "empty"),
        ({"structured_outputs": {"regex": "(a"}}, "structured_outputs.regex", "regex"),
        ({"structured_outputs": {}}, "structured_outputs", "json, regex"),
        (
            {"structured_outputs": {"regex": "a", "whitespace_pattern": " "}},
            "structured_outputs.whitespace_pattern",
            "regex",
        ),
        ({"structured_outputs": {"colour": 1}}, "structured_outputs.colour", "no parameter"),
        (
            {"structured_outputs": {"structural_tag": "{}"}},
            "structured_outputs.structural_tag",
            "not supported",
        ),
        ({"response_format": {"type": "xml"}}, "response_format.type", "json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a b"}}},
            "response_format.json_schema.name",
            "match",
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": {"type": "thing"}},
                }
            },
            SCHEMA_PARAM,
            "thing",
        ),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice", "guided_regex"),
        ({"response_format": FORMAT, "guided_regex": "a"}, "guided_regex", SCHEMA_PARAM),
        ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern", "guided_json"),
        ({"guided_decoding_backend": "outlines"}, "guided_decoding_backend", "llguidance"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_what_cannot_be_had_is_named(fields, param, words, stream):
    async def main(server):
        for path, prompt in ((COMPLETIONS, {"prompt": "a"}), (CHAT, {"messages": HELLO})):
            error = await server.error(path, {**prompt, **fields, "stream": stream})
            assert error["param"] == param
            assert param in error["message"]
            assert words in error["message"]

    serve(main)


def test_a_slow_grammar_holds_nobody_up(monkeypatch):
    compile_now = GrammarCompiler.compile
    gate = threading.Event()

    def compile_slowly(self, params):
        if threading.current_thread() is not threading.main_thread():
            assert gate.wait(20)
        return compile_now(self, params)

    monkeypatch.setattr(GrammarCompiler, "compile", compile_slowly)

    async def main(server):
        request = {"prompt": "a", "guided_choice": ["red", "blue"]}
        slow = asyncio.create_task(server.ok(COMPLETIONS, request))
        await server.ok(COMPLETIONS, {"prompt": "a"})
        assert not slow.done()
        gate.set()
        assert text_of(await slow) in ("red", "blue")

    serve(main)


def test_a_grammar_is_compiled_beside_the_event_loop(monkeypatch):
    threads = []
    compile_now = GrammarCompiler._get_vocabulary

    def noting(self):
        threads.append(threading.current_thread())
        return compile_now(self)

    monkeypatch.setattr(GrammarCompiler, "_get_vocabulary", noting)

    async def main(server):
        await server.ok(COMPLETIONS, {"prompt": ["a", "b"], "guided_regex": "[ab]{2}", "n": 2})

    serve(main)
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()


def test_an_output_that_cannot_go_on_is_a_500(monkeypatch):
    allowed = Constraint.allowed

    def lost(self, vocab_size):
        if len(self._token_ids) >= 10:
            self.failure = "the lexer has lost its way"
        return allowed(self, vocab_size)

    monkeypatch.setattr(Constraint, "allowed", lost)

    async def main(server):
        request = {"guided_regex": "[a-z]{50}", "max_tokens": 60}
        for path, prompt in ((COMPLETIONS, {"prompt": "a"}), (CHAT, {"messages": HELLO})):
            error = await server.error(path, {**prompt, **request}, 500)
            assert error["code"] == "generation_error"
            assert error["type"] == "server_error"
            assert "lost its way" in error["message"]
            response = await server.post(path, {**prompt, **request, "stream": True})
            *some, last = [json.loads(line[6:]) for line in response.text.split("\n\n") if line]
            assert len(some) >= 1
            assert last["error"]["code"] == "generation_error"
            assert "lost its way" in last["error"]["message"]
        metrics = (await server.client.get("/metrics")).text
        assert 'request_success_total{finished_reason="error"' in metrics

    serve(main, make_llm())
