"""HTTP as uvicorn speaks it, with an end to endless headers and to replies that nobody reads."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from llmir.server.errors import ApiError
from llmir.server.json_body import dumps

LAST_BYTES_S = 30.0
"""How long a connection that is closed waits for a client to read anything of what is left."""


class _Closing:
    """A transport whose `close` comes to an end though nobody reads.

    asyncio's own sends what is left first, and waits for ever for a client that does not read it.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._is_gone = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        self._transport.close()
        if self._timer is None and not self._is_gone:
            self._wait()

    def closed(self) -> None:
        """To be called when the connection is gone."""
        self._is_gone = True
        if self._timer is not None:
            self._timer.cancel()

    def _wait(self) -> None:
        left = self._transport.get_write_buffer_size()
        self._timer = self._loop.call_later(LAST_BYTES_S, self._look, left)

    def _look(self, left: int) -> None:
        if self._transport.get_write_buffer_size() < left:
            self._wait()
        else:
            self._transport.abort()


class HttpProtocol(H11Protocol):
    """One connection.

    uvicorn waits for ever for the rest of a header, and says what is wrong with one in plain text.

    header_timeout_s  how long a client may take to send its headers
    """

    header_timeout_s = 30.0
    _header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._closing = _Closing(transport, self.loop)
        self.transport = self._closing  # type: ignore[assignment]
        self._arm()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # The next request may have begun to come while this one was answered.
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._closing.closed()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        self._disarm()
        body = dumps(ApiError(400, "this is no HTTP request that the server understands").body())
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        events: list[h11.Event] = [
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ]
        # In the middle of a response nothing can be said any more.
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            for event in events:
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _watch(self) -> None:
        """Whether a header has begun and not ended."""
        if self.conn.their_state is not h11.IDLE:
            self._disarm()
        elif self.conn.trailing_data[0]:
            self._arm()

    def _arm(self) -> None:
        if self._header_timer is None:
            self._header_timer = self.loop.call_later(self.header_timeout_s, self._too_slow)

    def _disarm(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _too_slow(self) -> None:
        self._header_timer = None
        if not self.transport.is_closing():
            self.transport.close()
