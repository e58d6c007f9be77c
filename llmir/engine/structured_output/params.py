"""What form an output must have, with vLLM's field names."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from llmir.errors import OptionError, RequestError, UnknownNameError

CONSTRAINTS = ("json", "regex", "choice", "grammar", "json_object")
"""Fields of which a request gives exactly one."""

NOT_IMPLEMENTED = frozenset({"disable_additional_properties", "disable_fallback", "structural_tag"})
"""Fields that vLLM has, or had, and llmir does not: refused by name, never ignored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutputsParams:
    """The form of an output: exactly one of the first five.  Immutable; lists become tuples.

    json                    a JSON schema, as a dict or as text; kept as text
    regex                   a regular expression that the whole output matches, in the syntax
                            of Rust's regex crate: no look-around, no back-references
    choice                  texts, one of which is the output
    grammar                 a context-free grammar: Lark's, with a rule `start`, or EBNF in
                            llama.cpp's manner (GBNF), with a rule `root`
    json_object             True: any JSON object
    disable_any_whitespace  True: JSON without white space between its tokens
    whitespace_pattern      a regex for the white space between JSON's tokens, in place of
                            any; matched once or not at all at each place

    Whether a schema, regex or grammar can be used is known when a request is added: then
    the library compiles it.

    Raises:
        RequestError: none or several constraints, or a value of the wrong kind; the message
            begins with `structured_outputs` and the field's name.
        OptionError: a field that llmir does not implement.
    """

    json: str | Mapping[str, Any] | None = None
    regex: str | None = None
    choice: Iterable[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool = False
    whitespace_pattern: str | None = None

    def __new__(cls, **kwargs: Any) -> StructuredOutputsParams:
        # As SamplingParams: the keywords are seen before `__init__` refuses them with a
        # TypeError that says nothing of why.
        known = {field.name for field in fields(cls)}
        for name in kwargs:
            if name in NOT_IMPLEMENTED:
                raise OptionError(f"structured_outputs.{name} is not implemented by llmir")
            if name not in known:
                raise UnknownNameError("field of structured_outputs", name, known)
        return object.__new__(cls)

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        put("json_object", _flag("json_object", self.json_object) or None)
        put("disable_any_whitespace", _flag("disable_any_whitespace", self.disable_any_whitespace))
        given = [name for name in CONSTRAINTS if getattr(self, name) is not None]
        if len(given) != 1:
            what = f"has {' and '.join(given)}" if given else "has none"
            raise RequestError(
                f"structured_outputs needs one of {', '.join(CONSTRAINTS)}; it {what}"
            )
        for name in ("regex", "grammar", "whitespace_pattern"):
            if getattr(self, name) is not None:
                _text(name, getattr(self, name))
        if self.json is not None:
            put("json", _schema(self.json))
        if self.choice is not None:
            put("choice", _choices(self.choice))
        for name in ("disable_any_whitespace", "whitespace_pattern"):
            if getattr(self, name) and given[0] not in ("json", "json_object"):
                raise RequestError(
                    f"structured_outputs.{name} is for json and json_object, not for {given[0]}"
                )
        if self.disable_any_whitespace and self.whitespace_pattern is not None:
            raise RequestError(
                "structured_outputs.whitespace_pattern contradicts disable_any_whitespace"
            )

    @property
    def kind(self) -> str:
        """The field that holds the constraint."""
        return next(name for name in CONSTRAINTS if getattr(self, name) is not None)


def _flag(name: str, value: object) -> bool:
    if value is not None and not isinstance(value, bool):
        raise RequestError(f"structured_outputs.{name} must be True or False, not {value!r}")
    return bool(value)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise RequestError(f"structured_outputs.{name} must be a string, not {value!r}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"structured_outputs.{name} must be Unicode text: {error}") from None
    return value


def _choices(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise RequestError(
            f"structured_outputs.choice must be a list of at least one string, not {value!r}"
        )
    return tuple(_text("choice", text) for text in value)


def _schema(value: object) -> str:
    """A schema as text: in the order of its keys, which is that of the output's, and immutable."""
    try:
        schema = json.loads(value) if isinstance(value, str) else value
        if not isinstance(schema, Mapping):
            raise RequestError(
                "structured_outputs.json must be a JSON schema, an object as dict or text, "
                f"not {value!r:.200}"
            )
        return json.dumps(dict(schema), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"structured_outputs.json is not JSON: {error}") from None
