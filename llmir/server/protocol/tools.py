"""Tools in requests, and calls of them in both directions."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from llmir.server.protocol.base import RequestModel, SentBack

FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
MAX_TOOLS = 128
"""OpenAI's limit."""


class Function(RequestModel):
    """A function that the model may call.  `parameters` is the JSON schema of its arguments."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(RequestModel):
    type: Literal["function"]
    function: Function

    def for_template(self) -> dict[str, Any]:
        """The tool as chat templates read it."""
        function = {"name": self.function.name}
        for name in ("description", "parameters"):
            value = getattr(self.function, name)
            if value is not None:
                function[name] = value
        return {"type": "function", "function": function}


class ChosenFunction(RequestModel):
    name: FunctionName


class NamedTool(RequestModel):
    """The one function that is to be called."""

    type: Literal["function"]
    function: ChosenFunction


ToolChoice = Literal["none", "auto", "required"] | NamedTool
Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)]


class CalledFunction(SentBack):
    """`arguments` is JSON in a string."""

    name: str
    arguments: str

    @field_validator("arguments")
    @classmethod
    def _check_arguments(cls, arguments: str) -> str:
        cls.parse(arguments)
        return arguments

    @staticmethod
    def parse(arguments: str) -> dict[str, Any]:
        """The arguments by name; none are written as "" by some."""
        try:
            found = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise PydanticCustomError("json_object", "a JSON object in a string")
        return found


class GivenToolCall(SentBack):
    """A call that the model made earlier."""

    id: str | None = None
    type: Literal["function"]
    function: CalledFunction

    def for_template(self) -> dict[str, Any]:
        """The call as chat templates read it: its arguments are an object."""
        name, arguments = self.function.name, self.function.arguments
        call = {"type": "function", "function": {"name": name}}
        call["function"]["arguments"] = CalledFunction.parse(arguments)  # type: ignore[index]
        return call if self.id is None else {"id": self.id, **call}


ToolCalls = Annotated[list[GivenToolCall], Field(fail_fast=True)]


class FunctionCall(TypedDict):
    name: str
    arguments: str


class ToolCall(TypedDict):
    """A call that the model makes."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class FunctionCallDelta(TypedDict):
    name: NotRequired[str]
    arguments: str


class ToolCallDelta(TypedDict):
    """What is new of call `index`; the first has its id and the function's name."""

    index: int
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: FunctionCallDelta
