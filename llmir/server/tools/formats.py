"""The formats in which models write calls of tools.

name          output                                                        models
hermes        <tool_call>{"name": …, "arguments": {…}}</tool_call>          Hermes, Qwen
smollm2       <tool_call>[{"name": …, "arguments": {…}}, …]</tool_call>     SmolLM2
llama3_json   {"name": …, "parameters": {…}}; …, perhaps after <|python_tag|>    Llama 3
mistral       [TOOL_CALLS][{"name": …, "arguments": {…}}, …], or name{…}    Mistral
"""

from __future__ import annotations

from dataclasses import dataclass

from llmir.errors import UnknownNameError


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """How a family of models writes calls.

    begin, end  marks before and behind calls; "": there is none
    bare        whether an output may begin with a call, without a mark
    named       whether a call may be its function's name and the arguments behind it
    marks       texts by which a chat template is known to be of this family
    short_ids   whether the family's templates want ids of nine letters and digits
    """

    name: str
    begin: str = ""
    end: str = ""
    bare: bool = False
    named: bool = False
    marks: tuple[str, ...] = ()
    short_ids: bool = False


BARE = ToolFormat(name="json", bare=True)
"""A list of calls and nothing else: what a grammar has outputs be."""

SMOLLM2 = ToolFormat(name="smollm2", begin="<tool_call>", end="</tool_call>")

FORMATS = {
    format.name: format
    for format in (
        ToolFormat(name="hermes", begin="<tool_call>", end="</tool_call>", marks=("<tool_call>",)),
        SMOLLM2,
        ToolFormat(
            name="llama3_json",
            begin="<|python_tag|>",
            bare=True,
            marks=("<|python_tag|>", '{"name": function name, "parameters"'),
        ),
        ToolFormat(
            name="mistral",
            begin="[TOOL_CALLS]",
            named=True,
            marks=("[TOOL_CALLS]",),
            short_ids=True,
        ),
    )
}

NOT_JSON = ("<function=", "<arg_key>")
"""In templates of models that write calls between XML tags, some of them in <tool_call>."""


def get_format(name: str) -> ToolFormat:
    """The format of a name.  Raises UnknownNameError."""
    if name not in FORMATS:
        raise UnknownNameError("tool call parser", name, FORMATS)
    return FORMATS[name]


def format_of(template: str) -> ToolFormat | None:
    """The format that a chat template writes earlier calls in; None: it cannot be told.

    A template that knows no tools gets instructions with SmolLM2's (see prompt.py).
    """
    if "tools" not in template:
        return SMOLLM2
    if any(mark in template for mark in NOT_JSON):
        return None
    for format in FORMATS.values():
        if any(mark in template for mark in format.marks):
            return format
    return None
