"""Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`.

Whatever goes wrong becomes an `ApiError`: what the client did wrong with the parameter named,
what the server could not do with a code that tells clients whether to try again.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from llmir.errors import DeviceError, EngineStoppedError, OptionError, RequestError

logger = logging.getLogger("llmir.server")

SHOWN_CHARS = 80
"""A value that is refused is shown in the message up to this length."""

SHOWN_ERRORS = 32
"""Of all that is wrong with a body, as much is looked at to find what to say of it."""


class ApiError(HTTPException):
    """What a client is told, and the HTTP status it is told with.

    param    the parameter that is to blame, as a path: `messages[0].content`
    code     a word for programs: "model_not_found", "context_length_exceeded", …
    """

    def __init__(
        self,
        status_code: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status_code, message, headers)
        self.message = message
        self.param = param
        self.code = code

    @property
    def type(self) -> str:
        if self.status_code == 429:
            return "rate_limit_error"
        return "invalid_request_error" if self.status_code < 500 else "server_error"

    def body(self) -> dict[str, Any]:
        """The response's JSON."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


def unsupported(param: str, why: str = "") -> ApiError:
    """A parameter that OpenAI or vLLM has and llmir has not."""
    return ApiError(
        400,
        f"{param} is not supported{': ' + why if why else ''}",
        param=param,
        code="unsupported_parameter",
    )


def overloaded(message: str, retry_after_s: int = 1) -> ApiError:
    """The server could serve this, but not now."""
    return ApiError(503, message, code="overloaded", headers={"Retry-After": str(retry_after_s)})


def as_api_error(error: Exception, params: Iterable[str] = ()) -> ApiError:
    """What a client is told of an error; one that nobody foresaw is logged with its traceback.

    params: names that the message of an engine's error may begin with, if it is about one.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        return _validation_error(error.errors(), error.body)
    if isinstance(error, RequestError | OptionError):
        first = re.match(r"\w+", str(error))
        param = first[0] if first and first[0] in params else None
        return ApiError(400, str(error), param=param)
    if isinstance(error, HTTPException):
        message = {404: "there is nothing at this address", 405: "this address has other methods"}
        return ApiError(
            error.status_code,
            message.get(error.status_code, str(error.detail)),
            headers=error.headers,
        )
    if isinstance(error, TimeoutError):
        return ApiError(504, "the request took longer than this server allows", code="timeout")
    if isinstance(error, EngineStoppedError):
        return ApiError(503, str(error), code="engine_stopped")
    if isinstance(error, DeviceError):
        logger.error("a step failed: %s", error)
        return ApiError(500, "the device failed while this was computed", code="device_error")
    logger.error("a request failed", exc_info=error)
    return ApiError(500, "an internal error, which is in the server's log", code="internal_error")


def _validation_error(errors: Sequence[Any], body: Any) -> ApiError:
    """One sentence on what pydantic found; of a union's alternatives, all those that came as far.

    errors: dicts with pydantic's type, loc, msg and input.
    """
    found = [(_path(e, body), e) for e in errors[:SHOWN_ERRORS]]
    deepest = max(len(path) for path, _ in found)
    path = next(path for path, _ in found if len(path) == deepest)
    same = [e for p, e in found if p == path]
    param = _join(path)
    kind = same[0]["type"]
    code = kind if kind.endswith("_parameter") else None
    if kind in ("missing", "union_tag_not_found"):
        message = f"{param or 'a JSON body'} is missing"
    elif kind == "unknown_parameter":
        message = f"there is no parameter {param}"
    elif kind == "unsupported_parameter":
        return unsupported(param, same[0]["ctx"]["why"])
    elif kind == "invalid":
        message = str(same[0]["msg"])
    else:
        wanted = dict.fromkeys(map(_expected, same))
        subject = param or "the body"
        message = f"{subject} must be {' or '.join(wanted)}, not {shown(_at(body, path))}"
    return ApiError(400, message, param=param or None, code=code)


_EXPECTED = {
    "bool_type": "true or false",
    "dict_type": "an object",
    "float_type": "a number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "int_type": "an integer",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "list_type": "a list",
    "model_attributes_type": "an object",
    "model_type": "an object",
    "string_type": "a string",
    "union_tag_invalid": "{expected_tags}",
    "too_short": "a list that is not empty",
}


def _expected(error: Mapping[str, Any]) -> str:
    """What a value should have been, as it reads after "must be"."""
    if error["type"] in _EXPECTED:
        return _EXPECTED[error["type"]].format(**error.get("ctx", {}))
    return str(error["msg"]).removeprefix("Input should be ")


def shown(value: Any) -> str:
    """A value as a message shows it: cut short, and without what terminals would take amiss."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    text = repr(value)
    return text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "…"


def _path(error: Mapping[str, Any], body: Any) -> tuple[int | str, ...]:
    """Where in `body` an error is, without the names of unions' members that pydantic adds."""
    path: list[int | str] = []
    here = body
    for part in error["loc"][1:]:  # the first is "body"
        in_object = isinstance(here, dict) and part in here
        in_list = isinstance(here, list) and isinstance(part, int) and part < len(here)
        if in_object or in_list:
            path.append(part)
            here = here[part]
    if "param" in error.get("ctx", {}):
        path.append(error["ctx"]["param"])
    elif error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        path.append(error["ctx"]["discriminator"].strip("'"))
    elif error["type"] == "missing" and len(error["loc"]) > 1:
        path.append(error["loc"][-1])
    return tuple(path)


def _at(body: Any, path: Iterable[int | str]) -> Any:
    for part in path:
        body = body[part]
    return body


def _join(path: Iterable[int | str]) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
