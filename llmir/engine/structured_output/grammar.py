"""From a request's constraint to the text of a grammar that llguidance compiles."""

from __future__ import annotations

import json
import re

from llguidance import LLMatcher, grammar_from

from llmir.engine.structured_output.params import StructuredOutputsParams
from llmir.errors import RequestError

GBNF_RULE = re.compile(r"^[ \t]*[\w-]+[ \t]*::=", re.MULTILINE)

LITERAL = r'"(?:[^"\\\n]|\\.)*"|/(?:[^/\\\n]|\\.)*/'
RULE_OPTIONS = re.compile(
    rf"^[ \t]*[?!]*[\w-]+[ \t]*\[((?:{LITERAL}|[^\]\"/]){{0,500}})\]", re.MULTILINE
)
OPTION = re.compile(r"\b(max_tokens|stop|temperature)\s*=")
"""Options of a Lark rule that an engine which samples by masks cannot follow."""

NAMES_TO_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions")
VALUES = ("enum", "const", "default", "examples")
"""Keywords of JSON schema whose values are not schemas."""


def grammar_text(params: StructuredOutputsParams) -> str:
    """The grammar in llguidance's own format, JSON.

    Raises RequestError where it cannot even be written; most mistakes show when it is compiled.
    """
    match params.kind:
        case "json":
            assert isinstance(params.json, str)
            _check_members(params.json)
            return _json_grammar(params.json, params)
        case "json_object":
            return _json_grammar('{"type": "object"}', params)
        case "regex":
            assert params.regex is not None
            return str(LLMatcher.grammar_from_regex(params.regex))
        case "choice":
            assert params.choice is not None
            # One terminal of all choices: as alternatives of a rule some thousands are too many.
            choices = " | ".join(json.dumps(text) for text in params.choice)
            return _lark_grammar(f"start: CHOICE\nCHOICE: {choices}")
        case _:
            assert params.grammar is not None
            return _lark_grammar(_as_lark(params.grammar))


def _json_grammar(schema: str, params: StructuredOutputsParams) -> str:
    overrides: dict[str, bool | str] | None
    if params.disable_any_whitespace:
        overrides = {"whitespace_flexible": False}
    elif params.whitespace_pattern is not None:
        overrides = {"whitespace_pattern": params.whitespace_pattern}
    else:
        overrides = None
    try:
        return str(LLMatcher.grammar_from_json_schema(schema, overrides=overrides))
    except ValueError as error:
        raise RequestError(f"structured_outputs.json: {error}") from None


def _check_members(schema: str) -> None:
    """Refuse what only members that repeat would make up: llguidance does not keep members that
    `properties` does not list from coming twice, which a reader of JSON takes for one."""
    try:
        todo = [json.loads(schema)]
    except RecursionError:
        raise RequestError("structured_outputs.json: too deeply nested") from None
    while todo:
        node = todo.pop()
        if isinstance(node, list):
            todo += node
        if not isinstance(node, dict):
            continue
        least, required = node.get("minProperties", 0), node.get("required", ())
        typed = isinstance(least, int) and isinstance(required, list | tuple)
        if typed and least > len(required) + 1:
            raise RequestError(
                f"structured_outputs.json: minProperties is {least}, and {len(required)} "
                "members are required: at most one more is supported"
            )
        for key, value in node.items():
            if key in NAMES_TO_SCHEMAS and isinstance(value, dict):
                todo += value.values()
            elif key not in VALUES:
                todo.append(value)


def _lark_grammar(lark: str) -> str:
    # Text alone would be taken for llguidance's own format where it begins with a brace.
    return json.dumps({"grammars": [{"lark_grammar": lark}]})


def _as_lark(grammar: str) -> str:
    if GBNF_RULE.search(grammar):
        # The library's search for a first rule takes the square of the blank lines' number.
        lines = [line for line in grammar.splitlines() if line.strip()]
        try:
            return str(grammar_from("gbnf", "\n".join(lines)))
        except ValueError as error:
            raise RequestError(f"structured_outputs.grammar: {error}") from None
    for options in RULE_OPTIONS.finditer(grammar):
        option = OPTION.search(re.sub(LITERAL, "", options[1]))
        if option is not None:
            raise RequestError(
                f"structured_outputs.grammar: the option {option[1]} of a rule is not supported"
            )
    return grammar
