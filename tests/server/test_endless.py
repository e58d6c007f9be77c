"""Requests that do not end, of those who may not come in too, and clients that do not read."""

from __future__ import annotations

import json
import socket
import time
from contextlib import suppress

import pytest
from server.helpers import LiveServer, live_server

import llmir.server.http
import llmir.server.sse
from llmir.server.http import HttpProtocol

HEAD = (
    b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n"
)


def connect(server: LiveServer) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", server.port))
    client.settimeout(20)
    return client


def reply(client: socket.socket) -> tuple[int, dict]:
    """Status and JSON of what comes until the server closes."""
    found = b""
    with suppress(ConnectionError):  # it closes on who is still sending
        while piece := client.recv(65536):
            found += piece
    head, _, body = found.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def test_a_body_that_comes_bit_by_bit_for_ever():
    """Each bit comes in time, and all of them do not."""
    with live_server(body_timeout_s=0.3) as server, connect(server) as client:
        client.sendall(HEAD + b"\r\n")
        start = time.monotonic()
        with suppress(ConnectionError):
            while not server_closed(client):
                client.sendall(b"1\r\n \r\n")
                time.sleep(0.02)
                assert time.monotonic() - start < 10
        status, body = reply(client)
        assert (status, body["error"]["code"]) == (408, "timeout")


def server_closed(client: socket.socket) -> bool:
    """Whether there is something to read, or nothing more ever."""
    client.setblocking(False)
    try:
        client.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    finally:
        client.settimeout(20)
    return True


@pytest.mark.parametrize("size", [b"ffffffffff", b"7fffffffffffffff"])
def test_a_chunk_without_end(size):
    with live_server(max_body_bytes=100_000) as server, connect(server) as client:
        with suppress(ConnectionError):
            client.sendall(HEAD + b"\r\n" + size + b"\r\n" + b" " * 300_000)
        status, body = reply(client)
        assert (status, body["error"]["code"]) == (413, "body_too_large")


@pytest.mark.parametrize("ending", [b"Transfer-Encoding: chunked", b"Content-Length: 99999999999"])
def test_who_may_not_come_in_is_not_listened_to(ending):
    with live_server(api_keys=("key",)) as server, connect(server) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\n" + ending + b"\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 401")
        server.wait_until(lambda: server.app.state.serving.open_requests.count == 0)


@pytest.mark.parametrize(
    "line",
    [b"GET /v1/models/%ff%fe HTTP/1.1", b"GET /%00%f0%28 HTTP/1.1", b"GET /none?%ff HTTP/1.1"],
)
def test_addresses_that_are_no_text(line):
    with live_server() as server, connect(server) as client:
        client.sendall(line + b"\r\nHost: a\r\nX-Request-Id: \xff\xfe\r\nConnection: close\r\n\r\n")
        status, body = reply(client)
        assert status == 404
        assert body["error"]["message"]


def test_a_key_that_is_no_text():
    with live_server(api_keys=("key",)) as server, connect(server) as client:
        client.sendall(
            b"GET /version HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer \xff\xfe\r\n"
            b"Connection: close\r\n\r\n"
        )
        assert reply(client)[0] == 401


def test_headers_without_end():
    with live_server() as server, connect(server) as client:
        with suppress(ConnectionError):
            client.sendall(b"GET /health HTTP/1.1\r\n" + b"X: " + b"a" * 1_000_000)
        status, body = reply(client)
        assert status == 400
        assert body["error"]["type"] == "invalid_request_error"


def test_who_does_not_read_is_not_waited_for(monkeypatch):
    connection_made = HttpProtocol.connection_made

    sockets = []

    def with_a_small_buffer(self, transport):
        connection_made(self, transport)
        sockets.append(transport.get_extra_info("socket"))
        sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

    monkeypatch.setattr(HttpProtocol, "connection_made", with_a_small_buffer)
    monkeypatch.setattr(llmir.server.sse, "LAST_WORDS_S", 0.1)
    monkeypatch.setattr(llmir.server.http, "LAST_BYTES_S", 0.1)
    body = {"prompt": "the", "max_tokens": 100, "ignore_eos": True, "n": 2, "logprobs": 20}
    content = json.dumps({**body, "stream": True}).encode()
    with live_server(request_timeout_s=3.0) as server, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", server.port))
        client.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % len(content) + content
        )
        serving, core = server.app.state.serving, server.llm._core
        server.wait_until(lambda: core.stats().generation_tokens == 200)
        time.sleep(0.3)
        assert serving.open_requests.count == 1  # all is computed, and cannot be sent
        server.wait_until_idle()
        server.wait_until(lambda: serving.open_requests.count == 0)
        server.wait_until(lambda: sockets[0].fileno() < 0)
