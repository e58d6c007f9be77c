"""What every request passes through, from the outside in.

    RequestScope   an id, the last word on errors, a line in the log, the count of the open ones
    (CORS)         Starlette's, if there are allowed origins
    ApiKeys        who may come in
    BodyLimit      how much they may bring, and how long they may take to

Plain ASGI: Starlette's BaseHTTPMiddleware would stand between a stream and its client's leaving.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import logging
import re
import time
import uuid
from collections.abc import Mapping, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmir.server.errors import ApiError, as_api_error
from llmir.server.json_body import JsonResponse

logger = logging.getLogger("llmir.server")

BASIC = 'Basic realm="llmir: any user, the API key as password", charset="UTF-8"'
"""How a browser is asked for a key."""

PROBES = frozenset({"/health", "/ready", "/metrics"})
"""Addresses that programs, and the page, ask for every second: in the log at debug."""

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class ClientGoneError(Exception):
    """The client has left: there is nobody to answer."""


class OpenRequests:
    """How many requests have come and not ended."""

    def __init__(self) -> None:
        self.count = 0
        self._none = asyncio.Event()

    def __enter__(self) -> None:
        self.count += 1
        self._none.clear()

    def __exit__(self, *exc: object) -> None:
        self.count -= 1
        if self.count == 0:
            self._none.set()

    async def all_ended(self) -> None:
        """Returns when there is none."""
        if self.count:
            await self._none.wait()


class RequestScope:
    """Gives each request an id and an end.

    `scope["state"]["request_id"]` is the client's X-Request-Id, or a new one where that is missing
    or no plain word; it is sent back.
    """

    def __init__(self, app: ASGIApp, open_requests: OpenRequests) -> None:
        self.app = app
        self.open_requests = open_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        start = time.perf_counter()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        with self.open_requests:
            try:
                await self.app(scope, receive, send_with_id)
            except ClientGoneError:
                pass
            except Exception as error:  # the last place where one can be answered
                if status:
                    raise
                await send_error(as_api_error(error), scope, receive, send_with_id)
            finally:
                is_probe = status == 200 and scope["path"] in PROBES
                logger.log(
                    logging.DEBUG if is_probe else logging.INFO,
                    "%s %s %s %.3fs %s",
                    scope["method"],
                    scope["raw_path"].decode("latin-1"),  # percent-encoded, so that it is one word
                    status or "gone",
                    time.perf_counter() - start,
                    request_id,
                )


class ApiKeys:
    """Lets nobody in without a key, but to /health.

    A key comes as a Bearer token, or as the password of HTTP's Basic, whatever the user's name.
    That is for browsers, which cannot send the other when they open the page: at `/` they are
    told so, and ask for it.  What they send by themselves afterwards helps no other site's page:
    its POSTs with JSON and its reading of answers are CORS', which lets no credentials in.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self.app = app
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        open_to_all = scope["type"] != "http" or scope["path"] == "/health"
        if open_to_all or self._knows(Headers(scope=scope).get("authorization", "")):
            await self.app(scope, receive, send)
            return
        error = ApiError(
            401,
            "this server wants an API key: send it as the header `Authorization: Bearer KEY`",
            code="invalid_api_key",
            headers={"WWW-Authenticate": BASIC if scope["path"] == "/" else "Bearer"},
        )
        await send_error(error, scope, receive, send)

    def _knows(self, header: str) -> bool:
        scheme, _, given = header.partition(" ")
        key = given.strip().encode("latin-1")
        scheme = scheme.lower()
        if scheme == "basic":
            key = _password(key)
        # Each is compared, and each in full, so that the time tells nothing of them.
        matches = [hmac.compare_digest(key, known) for known in self._keys]
        return scheme in ("bearer", "basic") and any(matches)


def _password(credentials: bytes) -> bytes:
    """That of Basic's base64 of `user:password` (RFC 7617); empty, which is no key, if not one."""
    try:
        return base64.b64decode(credentials, validate=True).partition(b":")[2]
    except binascii.Error:
        return b""


class BodyLimit:
    """Ends the reading of a body that is too long, or too slow to come."""

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "0")
        if length.isdigit() and int(length) > self.max_bytes:
            # What comes of it is read and dropped, so that a client that is still sending hears
            # this, and not that its connection broke.
            await send_error(self._too_long(), scope, receive, send)
            return
        taken = 0
        more_body = True
        deadline = asyncio.get_running_loop().time() + self.timeout_s

        async def receive_limited() -> Message:
            nonlocal taken, more_body
            if not more_body:
                return await receive()  # which waits until the client leaves
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise ApiError(
                    408,
                    f"the body did not come within {self.timeout_s:g} s",
                    code="timeout",
                    headers={"Connection": "close"},
                ) from None
            taken += len(message.get("body", b""))
            more_body = message.get("more_body", False)
            if taken > self.max_bytes:
                # Nobody knows how much more there is: the connection ends here.
                raise self._too_long({"Connection": "close"})
            return message

        await self.app(scope, receive_limited, send)

    def _too_long(self, headers: Mapping[str, str] | None = None) -> ApiError:
        return ApiError(
            413,
            f"the body is longer than this server takes ({self.max_bytes} bytes)",
            code="body_too_large",
            headers=headers,
        )


async def send_error(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    """Send an error as the response."""
    response = JsonResponse(error.body(), error.status_code, headers=dict(error.headers or {}))
    await response(scope, receive, send)
