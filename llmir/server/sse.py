"""Responses that a client can leave: server-sent events, and single answers.

Either way somebody listens for the client's leaving while the answer is computed; then the
computation is cancelled, which aborts its requests in the engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llmir.server.errors import ApiError
from llmir.server.json_body import dumps
from llmir.server.middleware import ClientGoneError, send_error

Result = TypeVar("Result")
ToApiError = Callable[[Exception], ApiError]

DONE = b"data: [DONE]\n\n"
"""What ends a stream of OpenAI's completions."""

LAST_WORDS_S = 10.0
"""How long a client that has stopped reading may keep a response from ending."""


def event(data: Mapping[str, Any], name: str | None = None) -> bytes:
    """One event; `name` as /v1/responses gives them."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + dumps(data) + b"\n\n"


class EventStream(Response):
    """Sends events as they come.

    The status waits for the first event, so that what fails before it is an error like any
    other; later errors are an event of their own, and the stream ends there.

    events       yields whole events
    to_error     what a client is told of an exception
    timeout_s    for all of it, the client's reading included; None: no end
    error_event  what ends a stream that has begun; None: OpenAI's error body
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes],
        *,
        to_error: ToApiError,
        timeout_s: float | None,
        error_event: Callable[[ApiError], bytes] | None = None,
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._to_error = to_error
        self._timeout_s = timeout_s
        self._error_event = error_event or (lambda error: event(error.body()))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await unless_left(receive, self._send_all(scope, receive, send))

    async def _send_all(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False
        try:
            async with asyncio.timeout(self._timeout_s), aclosing(self._events) as events:
                async for data in events:
                    if not started:
                        started = True
                        await self._start(send)
                    await send({"type": "http.response.body", "body": data, "more_body": True})
        except Exception as error:
            told = self._to_error(error)
            if not started:
                await send_error(told, scope, receive, send)
                return
            await self._end(send, self._error_event(told))
        else:
            await self._end(send, b"")

    async def _end(self, send: Send, last: bytes) -> None:
        try:
            async with asyncio.timeout(LAST_WORDS_S):
                await send({"type": "http.response.body", "body": last, "more_body": False})
        except TimeoutError:
            raise ClientGoneError from None

    async def _start(self, send: Send) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )


async def answer(
    request: Request, work: Coroutine[Any, Any, Result], timeout_s: float | None
) -> Result:
    """The result of `work`, unless it takes too long (TimeoutError) or the client leaves."""

    async def in_time() -> Result:
        async with asyncio.timeout(timeout_s):
            return await work

    return await unless_left(request.receive, in_time())


async def unless_left(
    receive: Callable[[], Awaitable[Any]], work: Coroutine[Any, Any, Result]
) -> Result:
    """The result of `work`.  When the client leaves first that is cancelled: ClientGoneError."""
    working = asyncio.ensure_future(work)
    listening = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({working, listening}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGoneError
    finally:
        for task in (working, listening):
            task.cancel()
        # Whoever holds pages gives them back before the request counts as over.
        await asyncio.gather(working, listening, return_exceptions=True)


async def _left(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
