"""Asking for outputs of a certain form, in OpenAI's words and in vLLM's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from llmir.server.protocol.base import RequestModel
from llmir.server.protocol.fields import Off

Choices = Annotated[list[str], Field(min_length=1, fail_fast=True)]
FormatName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
GUIDED = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
}
"""vLLM's older parameters, and what StructuredOutputsParams calls them."""


class TextFormat(RequestModel):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(RequestModel):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchema(RequestModel):
    """A JSON schema, any object where there is none.  It is kept to, whatever `strict` says."""

    name: FormatName
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(RequestModel):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]


class StructuredOutputs(RequestModel):
    """vLLM's: one of the first five; see llmir.StructuredOutputsParams."""

    refused: ClassVar[Mapping[str, str]] = {"structural_tag": ""}

    json_: dict[str, Any] | str | None = Field(None, alias="json")
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool | None = None
    whitespace_pattern: str | None = None
    disable_additional_properties: Off = None
    disable_fallback: Off = None

    def given(self) -> dict[str, Any]:
        """The arguments of StructuredOutputsParams."""
        off = {"disable_additional_properties", "disable_fallback"}
        return self.model_dump(by_alias=True, exclude_unset=True, exclude=off)


class StructuredFields(RequestModel):
    """The parameters that say what form an output has.  At most one of them is given."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None
    guided_whitespace_pattern: str | None = None
