"""A small OpenAI-compatible server with chosen delays, which notes when it wrote each token."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class FakeServer:
    """What it does, and what it saw.

    first_delay_s, gap_s   before the first token of an answer, and before each other
    refuses                fields of a request, "token_ids" among them, that get status 400
    has_tokenize           whether /tokenize is served, as vLLM does
    sends_usage            whether stream_options.include_usage has an effect
    fails                  prompt's first token → what goes wrong: "500", "cut", "error", "hang"
    bodies                 of the requests for completions
    writes                 of each answer: when its tokens were written, by time.perf_counter
    """

    first_delay_s: float = 0.0
    gap_s: float = 0.0
    refuses: tuple[str, ...] = ()
    has_tokenize: bool = True
    sends_usage: bool = True
    fails: dict[Any, str] = field(default_factory=dict)
    keeps_alive: bool = True
    port: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    writes: list[list[float]] = field(default_factory=list)
    num_connections: int = 0
    at_once: int = 0
    most_at_once: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        try:
            while await self.answer(reader, writer) and self.keeps_alive:
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.strip().split("\r\n")
        headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        _, path, _ = first.split(" ")
        if path == "/v1/models":
            return await plain(writer, 200, {"data": [{"id": "fake"}]})
        if path == "/tokenize" and self.has_tokenize:
            words = json.loads(body)["prompt"].split()
            return await plain(
                writer, 200, {"tokens": [100 + len(w) + i for i, w in enumerate(words)]}
            )
        if path not in ("/v1/completions", "/v1/chat/completions"):
            return await plain(writer, 404, {"error": {"message": "no such page"}})
        fields = json.loads(body)
        for name in self.refuses:
            is_ids = isinstance(fields.get("prompt"), list)
            if name in fields or (name == "token_ids" and is_ids):
                return await plain(writer, 400, {"error": {"message": f"{name} is refused"}})
        self.bodies.append(fields)
        self.headers.append(headers)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return await self.stream(writer, fields, "chat" in path)
        finally:
            self.at_once -= 1

    async def stream(
        self, writer: asyncio.StreamWriter, fields: dict[str, Any], chat: bool
    ) -> bool:
        prompt = fields["messages"][0]["content"] if chat else fields["prompt"]
        start = prompt.split()[0] if isinstance(prompt, str) else prompt[0]
        fault = self.fails.get(start, "")
        if fault == "500":
            return await plain(writer, 500, {"error": {"message": "a fault"}})
        if fault == "hang":
            await asyncio.sleep(30)
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        times: list[float] = []
        self.writes.append(times)
        if chat:
            event(writer, {"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        count = fields["max_tokens"]
        for i in range(count):
            await asyncio.sleep(self.gap_s if i else self.first_delay_s)
            if fault and i == 1:
                if fault == "cut":
                    return False
                event(writer, {"error": {"message": "a step failed"}})
                break
            # The second token is half a character: an event without text.
            text = "" if i == 1 else f" t{i}"
            part: dict[str, Any] = {"delta": {"content": text}} if chat else {"text": text}
            times.append(time.perf_counter())
            event(writer, {"choices": [{**part, "index": 0, "finish_reason": None}]})
            await writer.drain()
        end = {"delta": {}} if chat else {"text": ""}
        event(writer, {"choices": [{**end, "index": 0, "finish_reason": "length"}]})
        if self.sends_usage and fields.get("stream_options", {}).get("include_usage"):
            num_prompt = len(prompt.split()) if isinstance(prompt, str) else len(prompt)
            usage = {"prompt_tokens": num_prompt, "completion_tokens": len(times)}
            event(writer, {"choices": [], "usage": usage})
        chunk(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True


async def plain(writer: asyncio.StreamWriter, status: int, document: Any) -> bool:
    body = json.dumps(document).encode()
    writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    await writer.drain()
    return True


def event(writer: asyncio.StreamWriter, document: Any) -> None:
    chunk(writer, b"data: " + json.dumps(document).encode() + b"\n\n")


def chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


@contextmanager
def serving(server: FakeServer) -> Iterator[FakeServer]:
    """Runs it on a thread of its own."""
    loop = asyncio.new_event_loop()
    ready = threading.Event()

    async def run() -> None:
        listening = await asyncio.start_server(server.handle, "127.0.0.1", 0)
        server.port = listening.sockets[0].getsockname()[1]
        ready.set()
        async with listening:
            await stopped.wait()

    stopped = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(run()))
    thread.start()
    assert ready.wait(10)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join(10)
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
