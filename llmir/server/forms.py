"""From what a request says of its output's form to what the engine takes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from llmir.engine import AsyncLLM, SamplingParams, StructuredOutputsParams
from llmir.engine.structured_output import Grammar
from llmir.errors import LlmirError, OptionError, RequestError
from llmir.server.errors import ApiError
from llmir.server.protocol.structured import (
    GUIDED,
    JsonObjectFormat,
    JsonSchema,
    JsonSchemaFormat,
    StructuredFields,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What an output must be.

    params  for the engine
    name    the parameter that asked for it, for errors about it
    """

    params: StructuredOutputsParams
    name: str


def wanted_form(body: StructuredFields) -> Form | None:
    """The form that a request asks for.  Raises ApiError: two of them, or one that cannot be."""
    asked: dict[str, dict[str, Any]] = {}
    form = body.response_format
    if isinstance(form, JsonObjectFormat):
        asked["response_format"] = {"json_object": True}
    elif isinstance(form, JsonSchemaFormat):
        asked["response_format.json_schema.schema"] = of_schema(form.json_schema)
    if body.structured_outputs is not None:
        asked["structured_outputs"] = body.structured_outputs.given()
    for name, field in GUIDED.items():
        if getattr(body, name) is not None:
            asked[name] = {field: getattr(body, name)}
    pattern = body.guided_whitespace_pattern
    if pattern is not None:
        if "guided_json" not in asked:
            name = "guided_whitespace_pattern"
            raise ApiError(400, f"{name} needs guided_json", param=name)
        asked["guided_json"]["whitespace_pattern"] = pattern
    if len(asked) > 1:
        first, second, *_ = asked
        raise ApiError(400, f"{second} contradicts {first}: give one of them", param=second)
    for name, given in asked.items():
        return make_form(name, given)
    return None


def of_schema(schema: JsonSchema) -> dict[str, Any]:
    """The arguments of StructuredOutputsParams for OpenAI's `json_schema`."""
    return {"json_object": True} if schema.schema_ is None else {"json": schema.schema_}


def make_form(name: str, given: dict[str, Any]) -> Form:
    """A form from StructuredOutputsParams' arguments.  Raises ApiError, which names `name`."""
    try:
        return Form(params=StructuredOutputsParams(**given), name=name)
    except (OptionError, RequestError) as error:
        raise form_error(error, name) from error


_NOTHING_FITS = (
    "NoExtensionBias",
    "no text satisfies it; a $ref or a rule that leads back to itself with nothing between and "
    "no alternative is not supported",
)
"""What llguidance says of a grammar that no text satisfies, and what a client is told."""


async def compile_form(
    engine: AsyncLLM, params: SamplingParams, form: Form | None
) -> Grammar | None:
    """Compile a form that `params` asks for, beside the event loop.  Raises ApiError."""
    if form is None:
        return None
    try:
        return await engine.prepare(params)
    except RequestError as error:
        raise form_error(error, form.name) from error


def form_error(error: LlmirError, name: str) -> ApiError:
    """What a client is told of a form that cannot be had: its own name of it, and the reason."""
    text = str(error).replace(*_NOTHING_FITS)
    found = re.match(r"structured_outputs(\.\w+)?", text)
    if found is None:
        return ApiError(400, f"{name}: {text}", param=name)
    param = found[0] if name == "structured_outputs" else name
    return ApiError(400, param + text[found.end() :], param=param)
