"""Types of fields: checked in one go, with one error where pydantic's unions have many.

A list of a million wrong items must not become a million errors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import AfterValidator, Field
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from llmir.engine.sampling_params import LEAST_REPETITION_PENALTY, MOST_REPETITION_PENALTY

JsonSchema = dict[str, Any]

MAX_TOKEN_ID = 2**31 - 1
"""More than any vocabulary has, and as much as an int32 holds."""

_TOKEN_ID: JsonSchema = {"type": "integer", "minimum": 0, "maximum": MAX_TOKEN_ID}
_TOKEN_IDS: JsonSchema = {"type": "array", "items": _TOKEN_ID, "minItems": 1}
_STRING: JsonSchema = {"type": "string"}


def is_token_ids(value: Any) -> bool:
    """Whether this is a list of integers that could be tokens, at least one."""
    return (
        isinstance(value, list)
        and bool(value)
        # Not isinstance: true is an int to Python, and not to JSON.
        and all(type(item) is int and 0 <= item <= MAX_TOKEN_ID for item in value)
    )


@dataclass(frozen=True)
class Checked:
    """An annotation for a field: its values are those that pass `check`.

    expected  what it wants, after "must be"
    schema    the same for OpenAPI
    """

    check: Callable[[Any], bool]
    expected: str
    schema: JsonSchema = field(hash=False)

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._validate)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: Any) -> JsonSchema:
        return self.schema

    def _validate(self, value: Any) -> Any:
        if not self.check(value):
            raise PydanticCustomError("wrong_type", "{expected}", {"expected": self.expected})
        return value


def _is_prompt(value: Any) -> bool:
    if isinstance(value, str) or is_token_ids(value):
        return True
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(item, str) for item in value) or all(map(is_token_ids, value))


def _is_stop(value: Any) -> bool:
    items = [value] if isinstance(value, str) else value
    if items is None:
        return True
    return (
        isinstance(items, list)
        and len(items) <= MAX_STOPS
        and all(isinstance(item, str) and item for item in items)
    )


def _is_logit_bias(value: Any) -> bool:
    if value is None:
        return True
    return isinstance(value, dict) and all(
        key.isascii()
        and key.isdigit()
        and len(key) < 10
        and type(bias) in (int, float)
        and -100 <= bias <= 100
        for key, bias in value.items()
    )


PREFIX_CACHE = "the prefix cache has no settings of a request's"
"""Of OpenAI's parameters that say how long it keeps what prompts begin with."""

MAX_STOPS = 64
"""OpenAI takes 4; vLLM any number, each of which every token is compared with."""

PROMPT = Checked(
    _is_prompt,
    "a string, a list of token ids, or a list of either; none of the lists empty",
    {
        "anyOf": [
            _STRING,
            {"type": "array", "items": _STRING, "minItems": 1},
            _TOKEN_IDS,
            {"type": "array", "items": _TOKEN_IDS, "minItems": 1},
        ]
    },
)
STOP = Checked(
    _is_stop,
    f"a string or a list of at most {MAX_STOPS}, none of them empty",
    {
        "anyOf": [
            {"type": "string", "minLength": 1},
            {
                "type": "array",
                "items": {"type": "string", "minLength": 1},
                "maxItems": MAX_STOPS,
            },
            {"type": "null"},
        ]
    },
)
LOGIT_BIAS = Checked(
    _is_logit_bias,
    "an object of token ids and numbers from -100 to 100",
    {
        "anyOf": [
            {
                "type": "object",
                "patternProperties": {
                    "^[0-9]{1,9}$": {"type": "number", "minimum": -100, "maximum": 100}
                },
                "additionalProperties": False,
            },
            {"type": "null"},
        ]
    },
)
ANY_TOKEN_IDS = Checked(
    lambda value: value == [] or is_token_ids(value),
    "a list of token ids",
    {"type": "array", "items": _TOKEN_ID},
)
MAYBE_TOKEN_IDS = Checked(
    lambda value: value is None or value == [] or is_token_ids(value),
    "a list of token ids",
    {
        "anyOf": [
            {"type": "array", "items": _TOKEN_ID},
            {"type": "null"},
        ]
    },
)

Prompt = Annotated[str | list[int] | list[str] | list[list[int]], PROMPT]
Stop = Annotated[str | list[str] | None, STOP]
LogitBias = Annotated[dict[str, float] | None, LOGIT_BIAS]
AnyTokenIds = Annotated[list[int], ANY_TOKEN_IDS]
MaybeTokenIds = Annotated[list[int] | None, MAYBE_TOKEN_IDS]


def only(value: bool | int) -> Checked:
    """For a parameter that llmir has one value of: that, or null.  Literal[1] would take true."""
    kind = type(value)
    return Checked(
        lambda given: given is None or (type(given) is kind and given == value),
        str(value).lower(),
        {"anyOf": [{"const": value, "type": _JSON_TYPES[kind]}, {"type": "null"}]},
    )


_JSON_TYPES = {bool: "boolean", int: "integer"}
Off = Annotated[bool | None, only(False)]
One = Annotated[int | None, only(1)]
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Repetition = Annotated[float, Field(ge=LEAST_REPETITION_PENALTY, le=MOST_REPETITION_PENALTY)]
Priority = Annotated[int, Field(ge=-(2**31), le=2**31 - 1)]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
NumOutputs = Annotated[int, Field(ge=1, le=128)]


TEMPLATE_NAMES = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "conversation",
        "documents",
        "messages",
        "self",
        "tokenize",
        "tools",
    }
)
"""What chat_template_kwargs may not hold, as the request says it elsewhere, or may not."""


def _check_template_kwargs(kwargs: dict[str, Any]) -> dict[str, Any]:
    for name in kwargs:
        if name in TEMPLATE_NAMES:
            raise PydanticCustomError(
                "invalid", "chat_template_kwargs cannot set {param}", {"param": name}
            )
    return kwargs


TemplateKwargs = Annotated[dict[str, Any], AfterValidator(_check_template_kwargs)]
