"""Keys, limits, timeouts, and clients that leave."""

from __future__ import annotations

import asyncio
import json
import socket
import time

import httpx
import pytest
from engine.fake_runner import FakeRunner
from server.helpers import (
    LIMITS,
    NAME,
    GatedRunner,
    SlowRunner,
    error_of,
    live_server,
    make_llm,
    serve,
)

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
LONG = {"prompt": "the", "max_tokens": 400, "ignore_eos": True}

# -- who may come in ------------------------------------------------------------------------


ADDRESSES = [
    ("GET", "/v1/models"),
    ("GET", f"/v1/models/{NAME}"),
    ("GET", "/ready"),
    ("GET", "/version"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/"),
    ("GET", "/health/"),
    ("GET", "//health"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/responses"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("OPTIONS", "/v1/completions"),
]


def test_with_keys_only_health_answers_without_one():
    async def main(server):
        addresses = set(server.app.openapi()["paths"])
        assert addresses - {"/health"} <= {a.replace(NAME, "{model}") for _, a in ADDRESSES}
        for method, path in ADDRESSES:
            response = await server.client.request(method, path)
            assert error_of(response, 401)["code"] == "invalid_api_key"
            # A browser that opens the page is asked for a key as browsers can be.
            scheme = "Basic" if response.request.url.path == "/" else "Bearer"
            assert response.headers["www-authenticate"].split()[0] == scheme
        assert (await server.client.get("/health")).status_code == 200
        for wrong in ("Bearer nope", "Bearer ", "Basic one", "one", "Bearer one-two", "Bearer ONE"):
            response = await server.client.get("/v1/models", headers={"Authorization": wrong})
            error_of(response, 401)
        for right in ("Bearer one", "bearer two"):
            response = await server.client.get("/v1/models", headers={"Authorization": right})
            assert response.status_code == 200

    serve(main, api_keys=("one", "two"))


def test_no_web_page_may_call_unless_it_is_let():
    async def main(server):
        response = await server.client.get("/version", headers={"Origin": "https://a.example"})
        assert "access-control-allow-origin" not in response.headers

    async def with_origins(server):
        preflight = {
            "Origin": "https://a.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        }
        response = await server.client.options(CHAT, headers=preflight)
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == "https://a.example"
        response = await server.client.options(
            CHAT, headers={**preflight, "Origin": "https://b.example"}
        )
        assert response.status_code == 400
        # A page can read why it was not let in.
        response = await server.client.get("/version", headers={"Origin": "https://a.example"})
        assert response.headers["access-control-allow-origin"] == "https://a.example"
        error_of(response, 401)

    serve(main)
    serve(with_origins, allowed_origins=("https://a.example",), api_keys=("key",))


def test_request_ids():
    async def main(server):
        response = await server.post(COMPLETIONS, {"prompt": "a"}, headers={"X-Request-Id": "mine"})
        assert response.headers["x-request-id"] == "mine"
        assert response.json()["id"] == "cmpl-mine"
        made = [(await server.client.get("/version")).headers["x-request-id"] for _ in range(2)]
        assert made[0] != made[1]
        for odd in ("two words", "x" * 129):
            response = await server.client.get("/version", headers={"X-Request-Id": odd})
            assert response.headers["x-request-id"] not in ("", odd)
        response = await server.client.get("/nothing", headers={"X-Request-Id": "mine"})
        assert response.headers["x-request-id"] == "mine"

    serve(main)


def test_the_same_request_id_twice_at_once():
    async def main(server):
        requests = [
            server.post(COMPLETIONS, {"prompt": "a"}, headers={"X-Request-Id": "same"})
            for _ in range(3)
        ]
        answers = await asyncio.gather(*requests)
        assert [answer.status_code for answer in answers] == [200] * 3

    serve(main)


# -- how much ------------------------------------------------------------------------------


def test_a_body_that_is_too_long():
    async def main(server):
        error = await server.error(COMPLETIONS, {"prompt": "a" * 2000}, 413)
        assert "1000 bytes" in error["message"]

        async def chunks():
            for _ in range(20):
                yield b" " * 100

        response = await server.client.post(
            COMPLETIONS, content=chunks(), headers={"Content-Type": "application/json"}
        )
        assert error_of(response, 413)["code"] == "body_too_large"
        assert (await server.post(COMPLETIONS, {"prompt": "a"})).status_code == 200

    serve(main, max_body_bytes=1000)


def test_a_body_that_never_ends():
    with live_server(body_timeout_s=0.2) as server, _connect(server) as client:
        client.sendall(_head(COMPLETIONS, 1000) + b'{"prompt"')
        answer = _read_all(client)
        assert answer.startswith(b"HTTP/1.1 408")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "timeout"


@pytest.mark.parametrize("begun", [b"", b"POST /v1/comp", b"GET /health HTTP/1.1\r\nHost: a\r\nX"])
def test_headers_that_never_end(begun):
    with live_server(body_timeout_s=0.2) as server, _connect(server) as client:
        client.sendall(begun)
        assert _read_all(client) == b""  # closed


def test_headers_that_never_end_after_a_request():
    with live_server(body_timeout_s=0.2) as server, _connect(server) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 200")
        time.sleep(0.3)  # an idle connection may stay
        client.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\nGET /hea")
        assert _read_all(client).startswith(b"HTTP/1.1 200")


def test_what_is_no_http():
    with live_server() as server, _connect(server) as client:
        client.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        head, _, body = _read_all(client).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400")
        assert json.loads(body)["error"]["type"] == "invalid_request_error"


def test_too_many_that_wait_are_told_to_come_again():
    runner = GatedRunner()

    async def main(server):
        request = {"prompt": "the", "max_tokens": 2}
        first = [asyncio.create_task(server.post(COMPLETIONS, request))]
        while server.llm.stats().num_running < 1:
            await asyncio.sleep(0.001)
        first += [asyncio.create_task(server.post(COMPLETIONS, request)) for _ in range(3)]
        while server.app.state.serving.num_sequences < 4:
            await asyncio.sleep(0.001)
        response = await server.post(COMPLETIONS, request)
        error = error_of(response, 503)
        assert error["code"] == "overloaded"
        assert int(response.headers["retry-after"]) >= 1
        runner.gate.set()
        assert [answer.status_code for answer in await asyncio.gather(*first)] == [200] * 4
        error = await server.error(COMPLETIONS, {**request, "n": 4})
        assert error["param"] == "n"
        error = await server.error(COMPLETIONS, {**request, "prompt": ["a"] * 4})
        assert error["param"] == "prompt"

    serve(main, make_llm(runner, max_num_seqs=1), max_waiting=3)


# -- how long ------------------------------------------------------------------------------


def test_a_request_that_takes_too_long():
    async def main(server):
        error = await server.error(COMPLETIONS, LONG, 504)
        assert error["code"] == "timeout"
        # Nothing was sent yet, so that it is an error like any other.
        await server.client.get("/health")

    serve(main, make_llm(SlowRunner()), request_timeout_s=0.1)


def test_a_stream_that_takes_too_long_ends_with_an_error():
    async def main(server):
        response = await server.post(COMPLETIONS, {**LONG, "stream": True})
        assert response.status_code == 200
        *chunks, last, end = response.text.split("\n\n")
        assert chunks
        assert end == ""
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"

    serve(main, make_llm(SlowRunner()), request_timeout_s=1.5)


@pytest.mark.parametrize("stream", [False, True])
def test_a_step_that_fails_is_a_500_and_the_server_goes_on(stream):
    async def main(server):
        request = {"prompt": "the", "stream": stream}
        assert (await server.error(COMPLETIONS, request, 500))["code"] == "device_error"
        assert (await server.post(COMPLETIONS, request)).status_code == 200
        assert (await server.client.get("/health")).status_code == 200

    serve(main, make_llm(FakeRunner(LIMITS, fail_at=0)))


def test_a_step_that_fails_in_a_stream():
    runner = SlowRunner()
    runner.fail_at = 6

    async def main(server):
        response = await server.post(
            CHAT,
            {"messages": [{"role": "user", "content": "a"}], "stream": True, "ignore_eos": True},
        )
        *_, last, _ = response.text.split("\n\n")
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "device_error"

    serve(main, make_llm(runner))


# -- who leaves ----------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_who_leaves_is_not_computed_for(path, stream):
    runner = GatedRunner()
    body = {
        "messages": [{"role": "user", "content": "a"}],
        "prompt": ["a", "b"],
        "max_tokens": 400,
        "n": 2,
        "ignore_eos": True,
        "stream": stream,
    }
    del body["prompt" if path == CHAT else "messages"]
    with live_server(make_llm(runner)) as server:
        serving = server.app.state.serving
        content = json.dumps(body).encode()
        with _connect(server) as client:
            client.sendall(_head(path, len(content)) + content)
            server.wait_until(lambda: runner.num_begun > 0)
            assert serving.num_sequences == (2 if path == CHAT else 4)
        server.wait_until(lambda: serving.open_requests.count == 0)
        runner.gate.set()
        server.wait_until_idle()
        assert len(runner.batches) < 10  # and not 400
        metrics = httpx.get(f"{server.url}/metrics").text
        aborted = 'llmir:request_success_total{finished_reason="abort",model_name="fake"}'
        (line,) = [line for line in metrics.splitlines() if line.startswith(aborted)]
        assert float(line.split()[-1]) == (1 if path == CHAT else 2)


def test_who_leaves_in_the_middle_of_a_stream():
    runner = SlowRunner()
    with live_server(make_llm(runner)) as server:
        with httpx.stream(
            "POST", server.url + COMPLETIONS, json={**LONG, "stream": True}
        ) as response:
            assert next(response.iter_lines()).startswith("data: ")
        server.wait_until_idle()
        assert len(runner.batches) < 100


def test_who_leaves_while_sending():
    with live_server() as server:
        with _connect(server) as client:
            client.sendall(_head(COMPLETIONS, 100) + b"{")
        server.wait_until(lambda: server.app.state.serving.open_requests.count == 0)
        assert httpx.get(f"{server.url}/health").status_code == 200


def _connect(server) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", server.port))
    client.settimeout(20)
    return client


def _head(path: str, length: int) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


def _read_all(client: socket.socket) -> bytes:
    found = b""
    while piece := client.recv(65536):
        found += piece
    return found
