"""Clients as a server on the open internet meets them: few of them well-behaved.

Each visit is one request or what is meant to look like one, and ends with a word for what came of
it.  What must not happen is an assertion here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from .answers import Case, check
from .test_bad_requests import BAD_BODIES, WRONG_VALUES
from .wire import Reply, Wire, request

KEY = "a-key"
MOST_BODY_BYTES = 20_000
LARGE_BODY_BYTES = 4096
LONGEST_VISIT_S = 60.0
COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
LARGE_BODIES: list[tuple[str, dict[str, Any]]] = [
    (COMPLETIONS, {"prompt": "a b" * 6000}),
    (COMPLETIONS, {"prompt": ["a"] * 3000}),
    (COMPLETIONS, {"prompt": [[1]] * 3000}),
    (COMPLETIONS, {"prompt": [5] * 6000, "echo": True}),
    (CHAT, {"messages": [{"role": "user", "content": "a b"}] * 400}),
]

_bodies = [(body, status) for body, status, _ in BAD_BODIES if len(body) <= MOST_BODY_BYTES]
_wrong = [(name, value) for name, value in WRONG_VALUES if name != "priority"]


class Visitor:
    """Visits one server again and again, on a connection that is kept as long as that may be."""

    def __init__(self, port: int, cases: Sequence[Case]) -> None:
        self._port = port
        self._cases = cases
        self._wire: Wire | None = None
        self.rng = random.Random()
        self.id = ""

    async def visit(self, number: int) -> str:
        """The visit of this number, and what came of it."""
        self.rng.seed(number)
        self.id = f"visit-{number}"
        (kind,) = self.rng.choices(list(KINDS), list(KINDS.values()))
        try:
            async with asyncio.timeout(LONGEST_VISIT_S):
                outcome = await kind(self)
        except BaseException as error:
            error.add_note(f"visit {number}: {kind.__name__}")
            raise
        return outcome

    async def close(self, *, hard: bool = False) -> None:
        if self._wire is not None:
            await self._wire.close(hard=hard)
            self._wire = None

    # -- well-behaved --------------------------------------------------------------------

    async def asks(self) -> str:
        case, stream = self._case()
        wire = await self._send_case(case, stream)
        return check(case, await self._reply(wire), stream)

    async def looks(self) -> str:
        path = self.rng.choice(["/health", "/ready", "/metrics", "/v1/models", "/version"])
        return await self._expect(200, request("GET", path, headers=self._headers()))

    # -- leaving -------------------------------------------------------------------------

    async def leaves_before_the_first_byte(self) -> str:
        await self._send_case(*self._case())
        await asyncio.sleep(self.rng.choice([0, 0, 0.002, 0.02, 0.2]))
        return await self._leave()

    async def leaves_in_mid_stream(self) -> str:
        case, _ = self._case()
        wire = await self._send_case(case, True)
        await wire.head()
        with contextlib.suppress(TimeoutError):  # there may be no more to come
            async with asyncio.timeout(0.05):
                for _ in range(self.rng.randrange(4)):
                    await wire.some(self.rng.choice([1, 100, 2000]))
        return await self._leave()

    async def leaves_while_sending(self) -> str:
        data = request("POST", COMPLETIONS, b'{"prompt": "the"}', self._headers())
        wire = await self._connection()
        await wire.send(data[: self.rng.randrange(1, len(data))])
        return await self._leave()

    async def gives_up(self) -> str:
        """A client's own timeout."""
        case, stream = self._case()
        wire = await self._send_case(case, stream)
        try:
            async with asyncio.timeout(self.rng.uniform(0, 0.4)):
                reply = await self._reply(wire)
        except TimeoutError:
            return await self._leave()
        return check(case, reply, stream)

    async def never_ends(self) -> str:
        data = request("POST", COMPLETIONS, b'{"prompt": ', self._headers(), length=100)
        return await self._expect(408, data)

    # -- nonsense ------------------------------------------------------------------------

    async def sends_no_json(self) -> str:
        body, status = self.rng.choice(_bodies)
        return await self._expect(status, request("POST", COMPLETIONS, body, self._headers()))

    async def sends_a_wrong_value(self) -> str:
        name, value = self.rng.choice(_wrong)
        return await self._ask_in_vain({"prompt": "the", name: value}, 400, param=name)

    async def sends_too_much(self) -> str:
        if self.rng.random() < 0.5:
            data = request("POST", COMPLETIONS, b"", self._headers(), length=10**9)
        else:
            headers = {**self._headers(), "Transfer-Encoding": "chunked", "Content-Length": ""}
            chunk = b"1000\r\n" + b" " * 4096 + b"\r\n"
            data = request("POST", COMPLETIONS, headers=headers) + chunk * 6
        outcome = await self._expect(413, data)
        await self.close()  # the rest of the body is expected on this connection
        return outcome

    async def asks_for_too_much(self) -> str:
        body = {"prompt": [5] * self.rng.randint(96, 3000)}
        return await self._ask_in_vain(body, 400, code="context_length_exceeded")

    async def sends_a_large_body(self) -> str:
        """One that is read on a thread, and what it asks for there is no room for."""
        path, body = self.rng.choice(LARGE_BODIES)
        return await self._ask_in_vain(body, 400, path)

    async def asks_another_model(self) -> str:
        body = {"prompt": "the", "model": "gpt-9"}
        return await self._ask_in_vain(body, 404, code="model_not_found")

    async def has_no_key(self) -> str:
        case, _ = self._case()
        headers = self._headers() | {"Authorization": self.rng.choice(["", "Bearer no", "Basic x"])}
        data = request("POST", case.path, json.dumps(case.body).encode(), headers)
        return await self._expect(401, data)

    async def is_lost(self) -> str:
        method, path, status = self.rng.choice(
            [("GET", "/v2/nothing", 404), ("GET", COMPLETIONS, 405), ("DELETE", "/health", 405)]
        )
        return await self._expect(status, request(method, path, headers=self._headers()))

    async def speaks_no_http(self) -> str:
        await self.close()  # it must be the first thing on a connection to be seen for what it is
        wire = await self._connection()
        await wire.send(b"\x16\x03\x01 hello\r\n\r\n")
        reply = await wire.reply()
        assert reply.status == 400
        await self.close()
        return "400"

    # -- the wire ------------------------------------------------------------------------

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {KEY}", "X-Request-Id": self.id}

    def _case(self) -> tuple[Case, bool]:
        return self.rng.choice(self._cases), self.rng.random() < 0.5

    async def _connection(self) -> Wire:
        if self._wire is None or not self._wire.reusable:
            await self.close()
            self._wire = await Wire.open(self._port)
        return self._wire

    async def _send_case(self, case: Case, stream: bool) -> Wire:
        body = {**case.body, "stream": stream, "priority": self.rng.randrange(3)}
        wire = await self._connection()
        await wire.send(request("POST", case.path, json.dumps(body).encode(), self._headers()))
        return wire

    async def _ask_in_vain(
        self, body: dict[str, Any], status: int, path: str = COMPLETIONS, **error: str
    ) -> str:
        """Ask for what must be refused, unless there is no time even for that."""
        wire = await self._connection()
        await wire.send(request("POST", path, json.dumps(body).encode(), self._headers()))
        reply = await self._reply(wire)
        if reply.status != 503:
            assert reply.status == status, reply
            assert error.items() <= reply.error.items(), reply
        return str(reply.status)

    async def _reply(self, wire: Wire) -> Reply:
        """The reply to what was just sent: this one, and no other after it."""
        reply = await wire.reply()
        assert reply.headers["x-request-id"] == self.id
        assert wire.nothing_left()
        return reply

    async def _expect(self, status: int, data: bytes) -> str:
        wire = await self._connection()
        await wire.send(data)
        reply = await self._reply(wire)
        assert reply.status == status, reply
        assert status < 400 or reply.error
        return str(status)

    async def _leave(self) -> str:
        await self.close(hard=self.rng.random() < 0.5)
        return "left"


KINDS: dict[Callable[[Visitor], Awaitable[str]], float] = {
    Visitor.asks: 42,
    Visitor.looks: 3,
    Visitor.leaves_before_the_first_byte: 9,
    Visitor.leaves_in_mid_stream: 9,
    Visitor.leaves_while_sending: 3,
    Visitor.gives_up: 7,
    Visitor.never_ends: 1,
    Visitor.sends_no_json: 5,
    Visitor.sends_a_wrong_value: 7,
    Visitor.sends_too_much: 3,
    Visitor.asks_for_too_much: 2,
    Visitor.sends_a_large_body: 2,
    Visitor.asks_another_model: 2,
    Visitor.has_no_key: 4,
    Visitor.is_lost: 2,
    Visitor.speaks_no_http: 1,
}
"""What visitors do, and how often."""


async def visit_all(
    port: int, cases: Sequence[Case], numbers: Iterator[int], num_visitors: int
) -> Counter[str]:
    """Make the visits of these numbers, so many at a time; returns what came of them."""
    outcomes: Counter[str] = Counter()

    async def stay() -> None:
        visitor = Visitor(port, cases)
        try:
            for number in numbers:
                outcomes[await visitor.visit(number)] += 1
        finally:
            await visitor.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(num_visitors):
            group.create_task(stay())
    return outcomes
