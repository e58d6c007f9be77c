"""Bodies: JSON in UTF-8, not too deep, of nothing but JSON values.  And JSON out.

`json.loads` takes more than JSON has (NaN, lone surrogates, lists in lists until the
interpreter's stack ends); a client that sends such hears so, and nothing else comes in.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from llmir.server.errors import ApiError

MAX_DEPTH = 64
"""Lists and objects in one another: a tool's JSON schema may be 20 deep, hardly more."""

LARGE_BODY = 64 * 1024

_BRACKET_OR_STRING = re.compile(rb'[\[\]{}]|"(?:[^"\\]+|\\.)*"?', re.DOTALL)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def dumps(value: Any) -> bytes:
    """Compact JSON.  Raises ValueError on infinities and NaN, which JSON does not have."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # A lone surrogate of a message about one comes out as JSON's own escape.
    return text.encode("utf-8", "backslashreplace")


class JsonResponse(Response):
    """A JSON body."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return dumps(content)


class JsonRequest(Request):
    """A request whose body is read by `parse`."""

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            body = await self.body()
            # A large one would hold the event loop for longer than a token takes.
            large = len(body) > LARGE_BODY
            self._json = await asyncio.to_thread(parse, body) if large else parse(body)
        return self._json


class JsonRoute(APIRoute):
    """A route of FastAPI's that takes JSON bodies alone, read by `parse`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            if self.body_field is not None:
                check_content_type(request)
            return await handler(JsonRequest(request.scope, request.receive))

        return handle


def check_content_type(request: Request) -> None:
    """Raises ApiError 415 for what does not call itself JSON."""
    given = request.headers.get("content-type", "")
    if given.partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, f"the content type must be application/json, not {given!r}")


def parse(body: bytes) -> Any:
    """The JSON value in a body.  Raises ApiError 400 where there is none, or an odd one."""
    if not body:
        raise ApiError(400, "the body is empty: it must be a JSON object")
    _check_depth(body)
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the body is not UTF-8 text: {error}") from error
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except ValueError as error:  # a syntax error, or a number of too many digits
        raise ApiError(400, f"the body is not JSON: {error}") from error
    if _SURROGATE.search(body):
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise ApiError(
                400, "the body holds half of a UTF-16 surrogate pair, which is no character"
            ) from error
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _check_depth(body: bytes) -> None:
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return
    depth = 0
    for found in _BRACKET_OR_STRING.finditer(body):
        mark = found[0]
        if mark in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise ApiError(400, f"the body nests lists and objects more than {MAX_DEPTH} deep")
        elif mark in b"]}":
            depth -= 1
