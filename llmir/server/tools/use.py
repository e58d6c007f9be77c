"""What a request says of tools, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llmir.server.errors import ApiError, shown
from llmir.server.forms import Form, make_form
from llmir.server.protocol.tools import NamedTool, Tool, ToolChoice
from llmir.server.tools.formats import BARE, ToolFormat
from llmir.server.tools.parser import FormatParser, NamedParser, Parser
from llmir.server.tools.schema import WHITE_SPACE, arguments_schema, calls_schema


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """The tools that the model may call, or must.

    kind       "auto": it may; "required": one or several; "named": the one called `name`
    format     of calls in its output, where that is its own choice; its ids' kind otherwise
    form       what holds the output to calls; None: nothing does
    parallel   whether one output may have several calls
    """

    tools: Sequence[Tool]
    kind: Literal["auto", "required", "named"]
    format: ToolFormat | None
    form: Form | None = None
    name: str = ""
    parallel: bool = True

    def for_template(self) -> list[dict[str, Any]]:
        return [tool.for_template() for tool in self.tools]

    def parser(self) -> Parser:
        """For one output."""
        if self.kind == "named":
            return NamedParser(self.name)
        names = {tool.function.name for tool in self.tools}
        if self.kind == "required":
            return FormatParser(BARE, names)
        assert self.format is not None
        return FormatParser(self.format, names)


def wanted_tools(
    tools: Sequence[Tool] | None,
    choice: ToolChoice | None,
    parallel: bool | None,
    format: ToolFormat | None,
    form: Form | None,
) -> ToolUse | None:
    """What a request's parameters come to; None: it has no tools, or is not to use them.

    format  that the model writes calls in; None: not known
    form    that the request wants of the output besides

    Raises ApiError where they contradict each other.
    """
    if not tools:
        if choice not in (None, "none", "auto"):
            raise ApiError(400, "tool_choice needs tools", param="tool_choice")
        return None
    _check_names(tools)
    if choice == "none":
        return None
    if form is not None:
        raise ApiError(
            400,
            f"{form.name} cannot be had together with tools that may be called: set tool_choice "
            "to none, or leave one of them out",
            param=form.name,
        )
    several = parallel is not False
    if isinstance(choice, NamedTool):
        tool = _chosen(tools, choice)
        given = {"json": arguments_schema(tool), "whitespace_pattern": WHITE_SPACE}
        held = make_form("tools", given)
        name = tool.function.name
        return ToolUse(tools=tools, kind="named", format=format, form=held, name=name)
    if choice == "required":
        schema = calls_schema(tools, several=several)
        held = make_form("tools", {"json": schema, "whitespace_pattern": WHITE_SPACE})
        return ToolUse(tools=tools, kind="required", format=format, form=held, parallel=several)
    if format is None:
        raise ApiError(
            400,
            "tools: it cannot be told from the chat template how this model writes calls; start "
            "the server with --tool-call-parser, or set tool_choice to required or a function",
            param="tools",
        )
    return ToolUse(tools=tools, kind="auto", format=format, parallel=several)


def _check_names(tools: Sequence[Tool]) -> None:
    seen: set[str] = set()
    for number, tool in enumerate(tools):
        name = tool.function.name
        if name in seen:
            param = f"tools[{number}].function.name"
            raise ApiError(400, f"{param}: there are two functions {shown(name)}", param=param)
        seen.add(name)


def _chosen(tools: Sequence[Tool], choice: NamedTool) -> Tool:
    for tool in tools:
        if tool.function.name == choice.function.name:
            return tool
    param = "tool_choice.function.name"
    name = shown(choice.function.name)
    raise ApiError(400, f"{param}: there is no function {name} in tools", param=param)
