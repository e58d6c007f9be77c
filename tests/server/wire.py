"""HTTP/1.1 by hand: a client that can leave, dawdle and talk nonsense at any byte."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole response."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """OpenAI's error."""
        body = self.json()
        assert list(body) == ["error"], body
        assert set(body["error"]) == {"message", "type", "param", "code"}
        assert body["error"]["message"]
        found: dict[str, Any] = body["error"]
        return found


class Wire:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.reusable = True

    @classmethod
    async def open(cls, port: int) -> Wire:
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=1 << 22))

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def reply(self) -> Reply:
        """The next response.  EOFError, ConnectionError: there is none, or not all of one."""
        status, headers = await self.head()
        if headers.get("transfer-encoding") == "chunked":
            body = b"".join([chunk async for chunk in self._chunks()])
        else:
            body = await self._reader.readexactly(int(headers["content-length"]))
        self.reusable = headers.get("connection") != "close"
        return Reply(status, headers, body)

    async def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers of the next response."""
        first, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        version, status, _ = first.split(" ", 2)
        assert version == "HTTP/1.1"
        pairs = [line.split(":", 1) for line in lines if line]
        return int(status), {name.lower(): value.strip() for name, value in pairs}

    async def some(self, num_bytes: int) -> bytes:
        """As many bytes of what comes next, or fewer."""
        return await self._reader.read(num_bytes)

    def nothing_left(self) -> bool:
        """Whether all that came was read."""
        return not self._reader._buffer  # type: ignore[attr-defined]

    async def close(self, *, hard: bool = False) -> None:
        """Leave; hard: with a reset, and nothing that is still to be sent."""
        if hard:
            self._writer.transport.abort()
        self._writer.close()
        with contextlib.suppress(OSError):  # the other side was faster
            await self._writer.wait_closed()

    async def _chunks(self) -> Any:
        while True:
            size = int(await self._reader.readuntil(b"\r\n"), 16)
            data = await self._reader.readexactly(size + 2)
            if size == 0:
                return
            yield data[:-2]


def request(
    method: str,
    path: str,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
    length: int | None = None,
) -> bytes:
    """A request's bytes; `length`: what its head says of the body, if not the truth."""
    lines = {
        "Host": "test",
        "Content-Type": "application/json",
        "Content-Length": str(len(body) if length is None else length),
        **(headers or {}),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value)
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body
