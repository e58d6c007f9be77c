"""HTTP/1.1 POST with a streamed answer, on asyncio's own transports, as cheaply as Python allows.

Linux acknowledges what it receives up to 40 ms late, and a server that leaves Nagle's algorithm on,
as llama-server does, holds a token back until the one before is acknowledged.  So every piece is
acknowledged at once here: what is measured is the server, not the two waiting for each other.

The client shares the machine with the server that it measures.  Reading 750 events a second of
16 streams took httpx 16 % of a core of the machine where this was written, and this 6 %.

It knows what an answer to a POST may be: a body in chunks, of a given length, or up to the end
of the connection.  It follows no redirects and asks for no compression.  RFC 9112.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult

BodyHook = Callable[[bytes, float], None]
"""Given each piece of a body as it comes, and `time.perf_counter()` of when it came."""

MAX_HEAD_BYTES = 1 << 16
_QUICK_ACK = getattr(socket, "TCP_QUICKACK", None)  # Linux alone


class HttpError(Exception):
    """The connection broke, or what came over it is no HTTP."""


@dataclass(frozen=True, slots=True)
class Answer:
    """status; body: of an answer that is not 200, whose pieces went to nobody."""

    status: int
    body: bytes


class _Connection(asyncio.Protocol):
    """One connection; one exchange at a time.

    reusable: whether another exchange may follow.
    """

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._socket: Any = None
        self._done: asyncio.Future[Answer] | None = None
        self.reusable = False
        self.has_answered = False

    def exchange(self, request: bytes, on_body: BodyHook) -> asyncio.Future[Answer]:
        """Send a request; the future is done when the whole answer has come."""
        assert self._transport is not None
        self._done = asyncio.get_running_loop().create_future()
        self._on_body = on_body
        self._unread = b""
        self._in_head = True
        self._left: int | None = None  # of a body of known length; None: up to the end
        self._chunked = False
        self._status = 0
        self._refusal = b""
        self.reusable = self.has_answered = False
        if self._transport.is_closing():
            self._fail("the server closed the connection")
        else:
            self._transport.write(request)
        return self._done

    def abort(self) -> None:
        """Close without waiting for what is on its way."""
        self.reusable = False
        if self._transport is not None:
            self._transport.abort()

    @property
    def is_closing(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    # -- what asyncio calls --------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._socket = transport.get_extra_info("socket")

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        if _QUICK_ACK is not None:  # it holds for one acknowledgement
            self._socket.setsockopt(socket.IPPROTO_TCP, _QUICK_ACK, 1)
        if self._done is None or self._done.done():
            self.abort()  # nobody asked for this
            return
        self.has_answered = True
        self._unread += data
        try:
            if self._in_head and not self._take_head():
                return
            if self._chunked:
                self._take_chunks(now)
            else:
                self._take_plain(now)
        except ValueError as error:
            self._fail(f"the answer is no HTTP that this client knows: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self.reusable = False
        if self._done is None or self._done.done():
            return
        if not self._in_head and not self._chunked and self._left is None:
            self._finish()
        else:
            self._fail("the server closed the connection" + (f": {exc}" if exc else ""))

    # -- parsing -------------------------------------------------------------------------

    def _take_head(self) -> bool:
        head, end, rest = self._unread.partition(b"\r\n\r\n")
        if not end:
            if len(self._unread) > MAX_HEAD_BYTES:
                raise ValueError(f"a head of more than {MAX_HEAD_BYTES} bytes")
            return False
        first, *lines = head.decode("latin-1").split("\r\n")
        version, status, *_ = first.split(" ")
        if not version.startswith("HTTP/1."):
            raise ValueError(f"{first!r}")
        self._status = int(status)
        self._unread = rest
        if self._status < 200:  # "100 Continue": the answer is still to come
            return bool(rest) and self._take_head()
        fields = {name.strip().lower(): value.strip() for name, _, value in _parts(lines)}
        self._chunked = "chunked" in fields.get("transfer-encoding", "").lower()
        self._left = int(fields["content-length"]) if "content-length" in fields else None
        connection = fields.get("connection", "").lower()
        kept = connection != "close" if version == "HTTP/1.1" else connection == "keep-alive"
        self.reusable = kept and (self._chunked or self._left is not None)
        self._in_head = False
        return True

    def _take_chunks(self, now: float) -> None:
        data, at = self._unread, 0
        while (end := data.find(b"\r\n", at)) >= 0:
            size = int(data[at:end].split(b";", 1)[0], 16)
            start = end + 2
            if len(data) < start + size + 2:
                break
            at = start + size + 2
            if size == 0:  # trailers are not expected
                self._unread = b""
                self._finish()
                return
            self._take(data[start : start + size], now)
        self._unread = data[at:]

    def _take_plain(self, now: float) -> None:
        data, self._unread = self._unread, b""
        if data:
            self._take(data, now)
        if self._left is not None:
            self._left -= len(data)
            if self._left <= 0:
                self._finish()

    def _take(self, piece: bytes, now: float) -> None:
        if self._status == 200:
            self._on_body(piece, now)
        else:
            self._refusal += piece

    def _finish(self) -> None:
        assert self._done is not None
        if not self._done.done():
            self._done.set_result(Answer(self._status, self._refusal))

    def _fail(self, why: str) -> None:
        self.abort()
        if self._done is not None and not self._done.done():
            self._done.set_exception(HttpError(why))


def _parts(lines: list[str]) -> list[tuple[str, str, str]]:
    return [line.partition(":") for line in lines]


class HttpPool:
    """Connections to one server, kept between requests and made when there are too few.

    Args:
        url: "http" or "https", with a host.
        headers: of every request, besides those that HTTP needs.
        ssl_context: for https; None: the system's certificates.
    """

    def __init__(
        self,
        url: SplitResult,
        headers: Mapping[str, str],
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        secure = url.scheme == "https"
        self._host, self._port = url.hostname or "", url.port or (443 if secure else 80)
        self._ssl = (ssl_context or ssl.create_default_context()) if secure else None
        lines = {
            "Host": url.netloc.rpartition("@")[2],
            "Accept": "text/event-stream",
            "Content-Type": "application/json",
            **headers,
        }
        self._head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self._idle: list[_Connection] = []

    async def post(self, path: str, body: bytes, on_body: BodyHook) -> Answer:
        """POST, the pieces of a 200 given to on_body as they come.

        Cancelling closes the connection.  Raises HttpError, OSError.
        """
        head = f"POST {path} HTTP/1.1\r\n{self._head}Content-Length: {len(body)}\r\n\r\n"
        request = head.encode("latin-1") + body
        while True:
            connection, is_new = await self._connection()
            try:
                answer = await connection.exchange(request, on_body)
            except HttpError:
                # A server may close a connection that it had kept, just as we use it again.
                if is_new or connection.has_answered:
                    raise
                continue
            except BaseException:
                connection.abort()
                raise
            if connection.reusable:
                self._idle.append(connection)
            else:
                connection.abort()
            return answer

    async def close(self) -> None:
        """Close the connections that nobody uses."""
        while self._idle:
            self._idle.pop().abort()
        await asyncio.sleep(0)  # asyncio closes a socket in its next turn

    async def _connection(self) -> tuple[_Connection, bool]:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closing:
                return connection, False
        loop = asyncio.get_running_loop()
        _, made = await loop.create_connection(_Connection, self._host, self._port, ssl=self._ssl)
        return made, True
