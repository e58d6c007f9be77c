"""A server on a fake runner: in this process, or on a port of its own."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from engine.fake_runner import FakeRunner, small_limits
from engine.helpers import TOKENIZER, assert_nothing_held
from fastapi import FastAPI

from llmir.engine import AsyncLLM, GenerationConfig, SchedulerConfig, Tokenizer
from llmir.runtime.base import StepLimits
from llmir.server.app import create_app
from llmir.server.run import make_server
from llmir.server.settings import ServerSettings

LIMITS = small_limits(
    vocab_size=TOKENIZER.vocab_size, max_model_len=512, num_pages=(256,), max_num_batched_tokens=64
)
NAME = "fake"


class GatedRunner(FakeRunner):
    """A device that computes nothing while its gate is closed.

    num_begun  steps that have begun, those that stand at the gate too
    """

    def __init__(self, open_at_first: bool = False) -> None:
        super().__init__(LIMITS)
        self.gate = threading.Event()
        self.num_begun = 0
        if open_at_first:
            self.gate.set()

    def _logits(self, batch: Any, call: str) -> Any:
        self.num_begun += 1
        assert self.gate.wait(30), "nobody opened the gate"
        return super()._logits(batch, call)


class SlowRunner(FakeRunner):
    """A step takes as long as a real one."""

    seconds = 0.01

    def __init__(self) -> None:
        super().__init__(LIMITS)

    def _logits(self, batch: Any, call: str) -> Any:
        time.sleep(self.seconds)
        return super()._logits(batch, call)


class ScriptedRunner(FakeRunner):
    """A model that says what it is told to, one request at a time, and then ends.

    seconds  what a step takes
    """

    def __init__(self, limits: StepLimits = LIMITS) -> None:
        super().__init__(limits)
        self.seconds = 0.0
        self._script: list[int] = []
        self._start: int | None = None

    def play(self, text: str) -> None:
        """What the next request is answered with."""
        self._script = TOKENIZER.encode(text, add_special_tokens=False)
        self._start = None

    def _logits(self, batch: Any, call: str) -> Any:
        time.sleep(self.seconds)
        return super()._logits(batch, call)

    def _row(self, batch: Any, token: int) -> Any:
        row = super()._row(batch, token)
        position = int(batch.positions[token])
        if self._start is None:
            self._start = position
        place = position - self._start
        row[self._script[place] if place < len(self._script) else TOKENIZER.eos_token_id] += 100
        return row


def make_llm(
    runner: FakeRunner | None = None,
    generation: dict[str, Any] | None = None,
    tokenizer: Tokenizer | None = TOKENIZER,
    **config: Any,
) -> AsyncLLM:
    return AsyncLLM(
        runner or FakeRunner(LIMITS),
        tokenizer,
        generation_config=GenerationConfig.from_json(generation or {}),
        config=SchedulerConfig(**config),
    )


def settings(**changes: Any) -> ServerSettings:
    return ServerSettings(**{"model_names": (NAME,), **changes})


@dataclass
class Server:
    """A server in this process, and a client of it."""

    app: FastAPI
    llm: AsyncLLM
    client: httpx.AsyncClient

    async def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return await self.client.post(path, json=body, **options)

    async def ok(self, path: str, body: Any) -> Any:
        """The JSON of a request that must succeed."""
        response = await self.post(path, body)
        assert response.status_code == 200, response.text
        return response.json()

    async def error(self, path: str, body: Any, status: int = 400) -> dict[str, Any]:
        """The error of a request that must fail."""
        return error_of(await self.post(path, body), status)

    async def events(self, path: str, body: Any) -> list[Any]:
        """The JSON of a stream's events, which must end as OpenAI's do."""
        response = await self.post(path, {**body, "stream": True})
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith("text/event-stream")
        return events_of(response.text)


def error_of(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    body = response.json()
    assert list(body) == ["error"]
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert "Traceback" not in response.text
    return error


def events_of(text: str) -> list[Any]:
    assert text.endswith("data: [DONE]\n\n")
    events = text.split("\n\n")[:-2]
    assert all(event.startswith("data: ") for event in events)
    return [json.loads(event.removeprefix("data: ")) for event in events]


def serve(
    main: Callable[[Server], Awaitable[None]],
    llm: AsyncLLM | None = None,
    check: bool = True,
    **changes: Any,
) -> None:
    """Run `main(server)`; at the end the engine must hold nothing."""

    async def body() -> None:
        async with llm or make_llm() as engine:
            app = create_app(engine, settings(**changes))
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                await asyncio.wait_for(main(Server(app, engine, client)), 60)
            assert app.state.serving.num_sequences == 0
            assert app.state.serving.open_requests.count == 0
        if check:
            assert_nothing_held(engine._core)

    asyncio.run(body())


@dataclass
class LiveServer:
    """A server on a port of 127.0.0.1."""

    port: int
    app: FastAPI
    llm: AsyncLLM

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Until something is so that the server's thread makes so."""
        end = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < end, "it does not come to be"
            time.sleep(0.005)

    def wait_until_idle(self) -> None:
        serving = self.app.state.serving
        self.wait_until(
            lambda: not serving.num_sequences and not self.llm._core.has_unfinished_requests()
        )


@contextmanager
def live_server(llm: AsyncLLM | None = None, **changes: Any) -> Iterator[LiveServer]:
    """A server with a thread of its own, as clients meet it."""
    engine = llm or make_llm()
    app = create_app(engine, settings(**changes))
    started = threading.Event()
    server = make_server(app, started.set)

    async def main(listener: socket.socket) -> None:
        await server.serve([listener])
        await engine.shutdown(drain_seconds=0)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: asyncio.run(main(listener)))
        thread.start()
        try:
            assert started.wait(20)
            yield LiveServer(listener.getsockname()[1], app, engine)
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()
    assert_nothing_held(engine._core)
