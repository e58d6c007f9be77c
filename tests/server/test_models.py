"""The addresses that say what is served, how the server is, and how it ends."""

from __future__ import annotations

import asyncio
import threading

import httpx
import pytest
from engine.fake_runner import reference_greedy
from engine.helpers import TOKENIZER
from server.helpers import LIMITS, GatedRunner, SlowRunner, error_of, live_server, make_llm, serve

import llmir
from llmir.errors import OptionError
from llmir.server.run import drain
from llmir.server.settings import ServerSettings


def test_models():
    async def main(server):
        body = (await server.client.get("/v1/models")).json()
        assert [card["id"] for card in body["data"]] == ["first", "org/second"]
        for card in body["data"]:
            assert card["root"] == "first"
            assert card["max_model_len"] == LIMITS.max_model_len
            assert (await server.client.get(f"/v1/models/{card['id']}")).json() == card
            answer = await server.ok("/v1/completions", {"prompt": "a", "model": card["id"]})
            assert answer["model"] == card["id"]
        assert (await server.ok("/v1/completions", {"prompt": "a"}))["model"] == "first"
        assert error_of(await server.client.get("/v1/models/third"), 404)["param"] == "model"

    serve(main, model_names=("first", "org/second"))


def test_version_and_health():
    async def main(server):
        assert (await server.client.get("/version")).json() == {"version": llmir.__version__}
        for path in ("/health", "/ready"):
            response = await server.client.get(path)
            assert (response.status_code, response.content) == (200, b"")

    serve(main)


def test_an_engine_that_broke(caplog):
    async def main(server):
        def broken():
            raise ZeroDivisionError("the scheduler's own")

        server.llm._core.scheduler.schedule = broken
        await server.error("/v1/completions", {"prompt": "a"}, 503)
        for path in ("/health", "/ready"):
            error_of(await server.client.get(path), 503)
        await server.error("/v1/completions", {"prompt": "a"}, 503)

    with caplog.at_level("CRITICAL"):
        serve(main, check=False)


def test_probes_may_ask_for_the_headers_alone():
    with live_server() as server, httpx.Client(base_url=server.url) as client:
        for path in ("/health", "/ready", "/"):
            whole, head = client.get(path), client.head(path)
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["content-length"] == whole.headers["content-length"]
        server.app.state.serving.draining = True
        assert client.head("/ready").status_code == 503
        server.app.state.serving.draining = False


def test_tokenize_and_detokenize():
    async def main(server):
        body = await server.ok("/tokenize", {"prompt": "the cat", "return_token_strs": True})
        ids = TOKENIZER.encode("the cat")
        assert body == {
            "count": len(ids),
            "max_model_len": LIMITS.max_model_len,
            "tokens": ids,
            "token_strs": [TOKENIZER.backend.id_to_token(i) for i in ids],
        }
        messages = [{"role": "user", "content": "hello"}]
        body = await server.ok("/tokenize", {"messages": messages})
        rendered = TOKENIZER.apply_chat_template(messages)
        assert body["tokens"] == TOKENIZER.encode(rendered, add_special_tokens=False)
        assert body["token_strs"] is None
        shorter = await server.ok(
            "/tokenize", {"messages": messages, "add_generation_prompt": False}
        )
        assert shorter["count"] < body["count"]
        body = await server.ok("/detokenize", {"tokens": body["tokens"]})
        assert body == {"prompt": rendered}
        assert await server.ok("/detokenize", {"tokens": []}) == {"prompt": ""}
        for wrong in ({}, {"prompt": "a", "messages": messages}):
            error = await server.error("/tokenize", wrong)
            assert "either" in error["message"]
            assert error["param"] == "prompt"
        error = await server.error("/tokenize", {"prompt": "a", "add_generation_prompt": True})
        assert error["param"] == "add_generation_prompt"
        assert (await server.error("/detokenize", {}))["param"] == "tokens"
        assert (await server.error("/detokenize", {"tokens": ["a"]}))["param"] == "tokens"
        size = TOKENIZER.vocab_size
        assert (await server.ok("/detokenize", {"tokens": [size - 1]}))["prompt"]
        error = await server.error("/detokenize", {"tokens": [5, size]})
        assert error["param"] == "tokens"
        assert f"token id {size}; the vocabulary has 0 … {size - 1}" in error["message"]

    serve(main)


def test_a_long_text_is_tokenized_beside_the_event_loop(monkeypatch):
    threads = {}

    async def main(server):
        encode = TOKENIZER.encode

        def noted(text, *args, **options):
            threads[len(text)] = threading.current_thread()
            return encode(text, *args, **options)

        monkeypatch.setattr(TOKENIZER, "encode", noted)
        long = "the cat " * 1000
        body = await server.ok("/tokenize", {"prompt": long})
        assert body["tokens"] == encode(long)
        await server.ok("/tokenize", {"prompt": "short"})
        assert threads[5] is threading.current_thread()
        assert threads[len(long)] is not threading.current_thread()

    serve(main)


@pytest.mark.parametrize(
    "wrong",
    [
        {"model_names": ()},
        {"model_names": ("",)},
        {"api_keys": ("",)},
        {"api_keys": ("two words",)},
        {"api_keys": ("schlüssel",)},
        {"max_waiting": 0},
        {"max_body_bytes": 0},
        {"max_logprobs": -1},
        {"request_timeout_s": 0},
        {"request_timeout_s": float("nan")},
        {"shutdown_timeout_s": -1},
    ],
)
def test_settings_that_make_no_sense(wrong):
    (name,) = wrong
    with pytest.raises(
        OptionError, match="API key" if name == "api_keys" else name.removesuffix("s")
    ):
        ServerSettings(**{"model_names": ("m",), **wrong})


# -- the end -------------------------------------------------------------------------------


def begin_draining(server, uvicorn_server):
    loop = server.llm._loop
    return asyncio.run_coroutine_threadsafe(drain(server.app.state.serving, uvicorn_server), loop)


class Stopped:
    should_exit = False


def test_what_runs_is_finished_and_nothing_new_is_begun():
    runner = GatedRunner()
    body = {"prompt": "a", "max_tokens": 5, "temperature": 0}
    answers = []
    with live_server(make_llm(runner)) as server:
        url = f"{server.url}/v1/completions"
        client = threading.Thread(target=lambda: answers.append(httpx.post(url, json=body)))
        client.start()
        server.wait_until(lambda: runner.num_begun > 0)
        stopped = Stopped()
        draining = begin_draining(server, stopped)
        server.wait_until(lambda: server.app.state.serving.draining)
        error_of(httpx.get(f"{server.url}/ready"), 503)
        assert httpx.get(f"{server.url}/health").status_code == 200
        refused = httpx.post(url, json=body)
        assert error_of(refused, 503)["code"] == "overloaded"
        assert "retry-after" in refused.headers
        assert not stopped.should_exit
        runner.gate.set()
        client.join(20)
        draining.result(20)
        assert stopped.should_exit
    expected = reference_greedy(TOKENIZER.encode("a"), 5, LIMITS)
    assert answers[0].json()["choices"][0]["text"] == TOKENIZER.decode(expected)


def test_what_takes_too_long_is_aborted():
    body = {"prompt": "a", "max_tokens": 400, "ignore_eos": True}
    answers = []
    with live_server(make_llm(SlowRunner()), shutdown_timeout_s=0.1) as server:
        url = f"{server.url}/v1/completions"
        client = threading.Thread(target=lambda: answers.append(httpx.post(url, json=body)))
        client.start()
        server.wait_until(lambda: server.llm.stats().num_running > 0)
        begin_draining(server, Stopped()).result(20)
        client.join(20)
    (answer,) = answers
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["finish_reason"] == "abort"
