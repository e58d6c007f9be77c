"""HTTP answers cut into every kind of pieces."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import pytest

from llmir.bench.serve.http_stream import Answer, HttpError, HttpPool

HEAD = b"HTTP/1.1 200 OK\r\nServer: x\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n7;ext=1\r\n, world\r\n0\r\n\r\n"
SIZED = HEAD + b"content-length: 12\r\n\r\nhello, world"
UNTIL_CLOSE = b"HTTP/1.0 200 OK\r\n\r\nhello, world"
CONTINUED = b"HTTP/1.1 100 Continue\r\n\r\n" + SIZED


def exchange(pieces: Sequence[bytes], count: int = 1) -> tuple[list[Answer], bytes, int]:
    """`count` POSTs to a server that answers each with these pieces, and closes if told to."""
    got = bytearray()
    handlers: list[Any] = []
    connections = 0
    whole = b"".join(pieces)
    closes = whole.startswith(b"HTTP/1.0") or b"close" in whole

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        handlers.append(asyncio.current_task())
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(2)
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.001)
                if closes:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()

    async def run() -> list[Answer]:
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        pool = HttpPool(urlsplit(f"http://127.0.0.1:{port}/v1"), {})
        try:
            async with server, asyncio.timeout(10):
                return [
                    await pool.post("/v1", b"{}", lambda piece, now: got.extend(piece))
                    for _ in range(count)
                ]
        finally:
            await pool.close()
            await asyncio.gather(*handlers)

    return asyncio.run(run()), bytes(got), connections


@pytest.mark.parametrize("whole", [CHUNKED, SIZED, UNTIL_CLOSE, CONTINUED])
def test_a_body_is_the_same_in_any_pieces(whole: bytes) -> None:
    assert exchange([whole])[:2] == ([Answer(200, b"")], b"hello, world")
    for cut in range(10, len(whole), 13):
        assert exchange([whole[:cut], whole[cut:]])[1] == b"hello, world", cut
    single = [whole[i : i + 1] for i in range(len(whole))]
    assert exchange(single)[1] == b"hello, world"


def test_kept_connections_are_used_again() -> None:
    assert exchange([CHUNKED], 3)[2] == 1
    assert exchange([SIZED], 3)[2] == 1
    assert exchange([UNTIL_CLOSE], 3)[2] == 3
    closing = HEAD + b"Connection: close\r\nContent-Length: 2\r\n\r\nhi"
    answers, got, connections = exchange([closing], 3)
    assert (len(answers), got, connections) == (3, b"hihihi", 3)


def test_a_refusal_is_the_answers_body() -> None:
    whole = b'HTTP/1.1 422 No\r\nContent-Length: 4\r\n\r\n{"a"'
    assert exchange([whole[:30], whole[30:]]) == ([Answer(422, b'{"a"')], b"", 1)


@pytest.mark.parametrize(
    ("whole", "said"),
    [
        (b"SSH-2.0-x\r\n\r\n", "no HTTP"),
        (b"HTTP/2 200\r\n\r\n", "no HTTP"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "no HTTP"),
        (HEAD + b"Content-Length: close\r\n\r\n", "no HTTP"),
        (HEAD + b"Connection: close\r\nContent-Length: 12\r\n\r\nhello", "closed the connection"),
        (b"x" * 70_000, "no HTTP"),
    ],
)
def test_what_is_no_answer_is_an_error(whole: bytes, said: str) -> None:
    with pytest.raises(HttpError, match=said):
        exchange([whole])
