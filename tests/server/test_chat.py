"""/v1/chat/completions: the template's prompt, the fake model's tokens, OpenAI's shapes."""

from __future__ import annotations

import numpy as np
import pytest
from engine.fake_runner import reference_greedy, reference_row
from engine.helpers import TOKENIZER
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from server.helpers import LIMITS, NAME, SlowRunner, make_llm, serve

PATH = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]
GREEDY = {"temperature": 0, "max_completion_tokens": 6}


def prompt_of(messages: list[dict[str, str]], **options: object) -> list[int]:
    text = TOKENIZER.apply_chat_template(messages, **options)
    return TOKENIZER.encode(text, add_special_tokens=False)


def answer_to(messages: list[dict[str, str]], max_tokens: int = 6) -> list[int]:
    return reference_greedy(prompt_of(messages), max_tokens, LIMITS)


def test_a_chat_is_what_the_model_says():
    async def main(server):
        body = await server.ok(PATH, {"model": NAME, "messages": HELLO, **GREEDY})
        (choice,) = body["choices"]
        assert choice["message"] == {
            "role": "assistant",
            "content": TOKENIZER.decode(answer_to(HELLO)),
            "refusal": None,
        }
        assert choice["finish_reason"] == "length"
        assert body["usage"]["prompt_tokens"] == len(prompt_of(HELLO))
        assert body["id"].startswith("chatcmpl-")
        ChatCompletion.model_validate(body, strict=True)

    serve(main)


def test_a_stream_has_the_ids_of_tokens_that_show_no_text():
    # Half a character, with no text of its own.
    half = next(i for i in range(3, TOKENIZER.vocab_size) if TOKENIZER.decode([i]) == "\ufffd")
    request = {"messages": HELLO, "max_tokens": 3, "logit_bias": {str(half): 100}, "temperature": 0}

    async def main(server):
        whole = await server.ok(PATH, {**request, "return_token_ids": True})
        chunks = await server.events(PATH, {**request, "return_token_ids": True})
        choices = [chunk["choices"][0] for chunk in chunks]
        found = [token for choice in choices for token in choice.get("token_ids", ())]
        assert found == whole["choices"][0]["token_ids"] == [half] * 3

    serve(main, make_llm(SlowRunner()))


def test_a_stream_begins_with_the_role_and_adds_up():
    request = {"messages": HELLO, "n": 2, "seed": 1, "max_tokens": 20}

    async def main(server):
        whole = await server.ok(PATH, request)
        *chunks, last = await server.events(
            PATH, {**request, "stream_options": {"include_usage": True}}
        )
        assert last["choices"] == []
        assert last["usage"] == {
            **whole["usage"],
            "prompt_tokens_details": last["usage"]["prompt_tokens_details"],
        }
        for chunk in [*chunks, last]:
            ChatCompletionChunk.model_validate(chunk, strict=True)
        for choice in whole["choices"]:
            parts = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == choice["index"]]
            assert parts[0]["delta"] == {"role": "assistant", "content": ""}
            text = "".join(part["delta"].get("content", "") for part in parts)
            assert text == choice["message"]["content"]
            reasons = [part["finish_reason"] for part in parts]
            assert reasons == [None] * (len(parts) - 1) + [choice["finish_reason"]]
            assert all("role" not in part["delta"] for part in parts[1:])

    serve(main)


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(stream):
    async def main(server):
        request = {"messages": HELLO, "logprobs": True, "top_logprobs": 3, **GREEDY}
        if stream:
            parts = [event["choices"][0] for event in await server.events(PATH, request)]
            content = [x for p in parts if p["logprobs"] for x in p["logprobs"]["content"]]
        else:
            content = (await server.ok(PATH, request))["choices"][0]["logprobs"]["content"]
        tokens = answer_to(HELLO)
        assert [entry["token"] for entry in content] == [TOKENIZER.token_text(t) for t in tokens]
        before = prompt_of(HELLO)
        for entry, token in zip(content, tokens, strict=True):
            row = reference_row(before, LIMITS.vocab_size, LIMITS.group_windows).astype(float)
            expected = row - np.log(np.exp(row).sum())
            assert entry["logprob"] == pytest.approx(expected[token], abs=1e-5)
            best = [float(expected[i]) for i in np.argsort(-expected)[:3]]
            assert [c["logprob"] for c in entry["top_logprobs"]] == pytest.approx(best, abs=1e-5)
            before.append(token)
        joined = b"".join(bytes(entry["bytes"]) for entry in content)
        expected_bytes = TOKENIZER.backend.decode(tokens, skip_special_tokens=False)
        assert joined.decode("utf-8", "replace") == expected_bytes

    serve(main)


def test_logprobs_without_candidates():
    async def main(server):
        body = await server.ok(PATH, {"messages": HELLO, "logprobs": True, **GREEDY})
        content = body["choices"][0]["logprobs"]["content"]
        assert [entry["top_logprobs"] for entry in content] == [[]] * 6
        error = await server.error(PATH, {"messages": HELLO, "top_logprobs": 2})
        assert error["param"] == "top_logprobs"
        error = await server.error(PATH, {"messages": HELLO, "logprobs": True, "top_logprobs": 21})
        assert error["param"] == "top_logprobs"

    serve(main)


def test_content_in_parts_is_lines_of_one_text():
    parts = [{"type": "text", "text": "hello"}, {"type": "text", "text": "world"}]

    async def main(server):
        request = {"messages": [{"role": "user", "content": parts}], "return_token_ids": True}
        body = await server.ok(PATH, {**request, **GREEDY})
        joined = [{"role": "user", "content": "hello\nworld"}]
        assert body["prompt_token_ids"] == prompt_of(joined)
        assert body["choices"][0]["token_ids"] == answer_to(joined)

    serve(main)


def test_a_developer_is_the_system_to_templates_that_know_none():
    async def main(server):
        async def prompt(role):
            messages = [{"role": role, "content": "be kind"}, *HELLO]
            request = {"messages": messages, "return_token_ids": True, **GREEDY}
            return (await server.ok(PATH, request))["prompt_token_ids"]

        system = [{"role": "system", "content": "be kind"}, *HELLO]
        assert await prompt("developer") == await prompt("system") == prompt_of(system)

    serve(main)


def test_what_the_template_is_told():
    template = (
        "{{ mood }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}!{% endif %}"
    )

    async def main(server):
        async def prompt(**more):
            request = {"messages": HELLO, "return_token_ids": True, **GREEDY, **more}
            body = await server.ok(PATH, request)
            return TOKENIZER.decode(body["prompt_token_ids"], skip_special_tokens=False)

        assert await prompt() == "<user>hello!"
        assert await prompt(add_generation_prompt=False) == "<user>hello"
        assert await prompt(chat_template_kwargs={"mood": "glad"}) == "glad<user>hello!"

    serve(main, chat_template=template)


@pytest.mark.parametrize("name", ["messages", "tools", "tokenize", "chat_template"])
def test_the_templates_own_names_are_not_for_clients(name):
    async def main(server):
        kwargs = {name: "{{ 7 * 7 }}"}
        for path in (PATH, "/tokenize"):
            error = await server.error(path, {"messages": HELLO, "chat_template_kwargs": kwargs})
            assert error["param"] == f"chat_template_kwargs.{name}"
            assert name in error["message"]

    serve(main)


def test_a_template_that_refuses_is_the_clients_error():
    async def main(server):
        error = await server.error(PATH, {"messages": HELLO})
        assert error["param"] == "messages"
        assert "alternate" in error["message"]

    serve(main, chat_template="{{ raise_exception('roles must alternate') }}")


def test_as_many_tokens_as_fit_are_the_default():
    async def main(server):
        request = {"messages": HELLO, "temperature": 0, "ignore_eos": True}
        body = await server.ok(PATH, request)
        assert body["usage"]["total_tokens"] == LIMITS.max_model_len
        for name in ("max_tokens", "max_completion_tokens"):
            body = await server.ok(PATH, {**request, name: 3})
            assert body["usage"]["completion_tokens"] == 3
        body = await server.ok(PATH, {**request, "max_tokens": 2, "max_completion_tokens": 2})
        assert body["usage"]["completion_tokens"] == 2
        both = {"max_tokens": 9, "max_completion_tokens": 2}
        error = await server.error(PATH, {**request, **both})
        assert error["param"] == "max_tokens"
        assert "max_completion_tokens, its newer name, is 2" in error["message"]

    serve(main)


def test_a_long_conversation_is_rendered_all_the_same():
    words = "the cat sat on the mat and " * 100
    messages = [{"role": "user", "content": words}]

    async def main(server):
        error = await server.error(PATH, {"messages": messages})
        assert error["code"] == "context_length_exceeded"
        assert error["param"] == "messages"
        assert str(len(prompt_of(messages))) in error["message"]

    serve(main)


def test_what_has_no_effect_by_its_definition_is_accepted():
    async def main(server):
        await server.ok(
            PATH,
            {
                "messages": HELLO,
                "user": "u",
                "metadata": {"a": "b"},
                "store": False,
                "service_tier": "auto",
                "modalities": ["text"],
                "prompt_cache_key": "k",
                "safety_identifier": "s",
                "tools": None,
                "response_format": None,
                **GREEDY,
            },
        )

    serve(main)
