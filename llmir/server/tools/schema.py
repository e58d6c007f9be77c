"""The JSON schema of an output that must be calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmir.server.protocol.tools import Tool

WHITE_SPACE = "[ ]"
"""Between JSON's tokens, at most once: a small model may go on with it for ever."""

LITERALS = frozenset({"const", "default", "enum", "examples"})
"""Keywords whose values are no schemas."""

NAMED = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"})
"""Keywords whose values have a schema for each of some names."""


def arguments_schema(tool: Tool) -> dict[str, Any]:
    """Of one function's arguments: an object; without a schema it has none, as OpenAI has it."""
    if tool.function.parameters is None:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    return {"type": "object", **tool.function.parameters}


def calls_schema(tools: Sequence[Tool], *, several: bool) -> dict[str, Any]:
    """Of a list of calls of these functions, at least one."""
    defs, calls = {}, []
    for number, tool in enumerate(tools):
        key = f"function_{number}"
        defs[key] = _moved(arguments_schema(tool), f"#/$defs/{key}")
        calls.append(
            {
                "type": "object",
                "properties": {
                    "name": {"const": tool.function.name},
                    "arguments": {"$ref": f"#/$defs/{key}"},
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    schema = {"type": "array", "minItems": 1, "items": {"anyOf": calls}, "$defs": defs}
    return schema if several else {**schema, "maxItems": 1}


def _moved(schema: Any, to: str, *, has_names: bool = False) -> Any:
    """A schema that stands at `to` in another: its references to itself begin there.

    has_names: its keys are names that the schema's author gave, and no keywords.
    """
    if isinstance(schema, list):
        return [_moved(item, to) for item in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {}
    for key, value in schema.items():
        if has_names:
            moved[key] = _moved(value, to)
        elif key == "$ref" and isinstance(value, str) and value.startswith("#"):
            moved[key] = to + value[1:]
        elif key in LITERALS:
            moved[key] = value
        else:
            moved[key] = _moved(value, to, has_names=key in NAMED)
    return moved
