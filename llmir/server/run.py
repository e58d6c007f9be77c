"""The process that serves: a socket, an event loop, signals.

SIGTERM, SIGINT   /ready says 503, nothing new is begun, what runs is finished; exit code 0
a second one      the end, at once
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from llmir.server.http import HttpProtocol
from llmir.server.serving import Serving

KEEP_ALIVE_S = 75
"""How long an idle connection is kept: longer than clients keep theirs, so that they end them."""

LAST_RESPONSES_S = 2.0
"""How long responses may take to leave once what they say is complete."""


class _Server(uvicorn.Server):
    """uvicorn, which leaves signals to `run`."""

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_started()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def run(app: FastAPI, listener: socket.socket, on_started: Callable[[], None]) -> None:
    """Serve until a signal ends it; the engine is shut down then.

    listener: bound; it listens from now on.
    on_started: called when requests are taken.
    """
    asyncio.run(_run(app, listener, on_started))


async def _run(app: FastAPI, listener: socket.socket, on_started: Callable[[], None]) -> None:
    serving: Serving = app.state.serving
    server = make_server(app, on_started)
    ending: asyncio.Task[None] | None = None

    def on_signal(number: int) -> None:
        nonlocal ending
        if ending is not None:
            os._exit(128 + number)  # a step may be running, which no thread can be asked to leave
        ending = asyncio.create_task(drain(serving, server))

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    try:
        await server.serve([listener])
    finally:
        await serving.engine.shutdown(drain_seconds=0)


def make_server(app: FastAPI, on_started: Callable[[], None]) -> uvicorn.Server:
    """uvicorn for an application of `create_app`, which takes no heed of signals."""
    serving: Serving = app.state.serving
    timeout_s = serving.settings.body_timeout_s
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=type("Http", (HttpProtocol,), {"header_timeout_s": timeout_s}),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(LAST_RESPONSES_S),
    )
    return _Server(config, on_started)


async def drain(serving: Serving, server: uvicorn.Server) -> None:
    """Take nothing new, let what runs end, abort what takes too long; then stop the server."""
    serving.draining = True
    try:
        async with asyncio.timeout(serving.settings.shutdown_timeout_s):
            await serving.open_requests.all_ended()
    except TimeoutError:
        await serving.engine.shutdown(drain_seconds=0)
        ended = asyncio.create_task(serving.open_requests.all_ended())
        await asyncio.wait([ended], timeout=LAST_RESPONSES_S)
    server.should_exit = True
