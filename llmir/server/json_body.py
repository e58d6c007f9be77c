"""Bodies: JSON in UTF-8, not too deep, of nothing but JSON values.  And JSON out.

`json.loads` takes more than JSON has (NaN, lone surrogates, lists in lists until the
interpreter's stack ends); a client that sends such hears so, and nothing else comes in.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, cast

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope

from llmir.server.errors import ApiError, as_api_error

MAX_DEPTH = 64
"""Lists and objects in one another: a tool's JSON schema may be 20 deep, hardly more."""

MAX_CONTAINERS = 65_536
"""Lists and objects in a body: each takes a microsecond to read, and several to check."""

LARGE_BODY = 64 * 1024

LONG_LIST = 10_000
"""Values of which JSON is written in about a millisecond."""

_BRACKET_OR_STRING = re.compile(rb'[\[\]{}]|"(?:[^"\\]+|\\.)*"?', re.DOTALL)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def dumps(value: Any) -> bytes:
    """Compact JSON.  Raises ValueError on infinities and NaN, which JSON does not have."""
    if not isinstance(value, dict) or not any(map(_is_long, value.values())):
        return _dumps(value)
    members = (_dumps(key) + b":" + _in_pieces(member) for key, member in value.items())
    return b"{" + b",".join(members) + b"}"


def _is_long(value: Any) -> bool:
    return isinstance(value, list) and len(value) > LONG_LIST


def _in_pieces(value: Any) -> bytes:
    """As `_dumps`, which holds Python's lock while it writes a list, however long."""
    if not _is_long(value):
        return _dumps(value)
    pieces = (value[at : at + LONG_LIST] for at in range(0, len(value), LONG_LIST))
    return b"[" + b",".join(_dumps(piece)[1:-1] for piece in pieces) + b"]"


def _dumps(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # A lone surrogate of a message about one comes out as JSON's own escape.
    return text.encode("utf-8", "backslashreplace")


class JsonResponse(Response):
    """A JSON body."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return dumps(content)


class JsonRequest(Request):
    """A request whose body is read by `parse`.

    model: what it must be; None: any value.
    """

    def __init__(self, scope: Scope, receive: Receive, model: type[BaseModel] | None) -> None:
        super().__init__(scope, receive)
        self._model = model

    async def json(self) -> Any:
        """The body: JSON's value, or that of a large one as the model, which the route takes too.

        Raises ApiError.
        """
        if not hasattr(self, "_json"):
            body = await self.body()
            # A large one would hold the event loop for longer than a token takes.
            large = len(body) > LARGE_BODY
            self._json = await asyncio.to_thread(self._read, body) if large else parse(body)
        return self._json

    def _read(self, body: bytes) -> Any:
        value = parse(body)
        if self._model is None:
            return value
        try:
            return self._model.model_validate(value)
        except ValidationError as error:
            found = [
                {**one, "loc": ("body", *one["loc"])} for one in error.errors(include_url=False)
            ]
            raise as_api_error(RequestValidationError(found, body=value)) from error


class JsonRoute(APIRoute):
    """A route of FastAPI's that takes JSON bodies alone, read by `parse`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            model = None
            if self.body_field is not None:
                check_content_type(request)
                model = cast(type[BaseModel], self.body_field.field_info.annotation)
            return await handler(JsonRequest(request.scope, request.receive, model))

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
    depth = count = 0
    for found in _BRACKET_OR_STRING.finditer(body):
        mark = found[0]
        if mark in b"[{":
            depth += 1
            count += 1
            if count > MAX_CONTAINERS:
                raise ApiError(
                    400, f"the body has more than {MAX_CONTAINERS} lists and objects in it"
                )
            if depth > MAX_DEPTH:
                raise ApiError(400, f"the body nests lists and objects more than {MAX_DEPTH} deep")
        elif mark in b"]}":
            depth -= 1
