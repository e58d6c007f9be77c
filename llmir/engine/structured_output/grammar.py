"""From a request's constraint to the text of a grammar that llguidance compiles."""

from __future__ import annotations

import json
import re

from llmir.engine.structured_output.params import StructuredOutputsParams
from llmir.errors import RequestError

GBNF_RULE = re.compile(r"^\s*[\w-]+\s*::=", re.MULTILINE)

LITERAL = r'"(?:[^"\\\n]|\\.)*"|/(?:[^/\\\n]|\\.)*/'
RULE_OPTIONS = re.compile(rf"^[ \t]*[?!]*[\w-]+[ \t]*\[((?:{LITERAL}|[^\]\"/])*)\]", re.MULTILINE)
OPTION = re.compile(r"\b(max_tokens|stop|temperature)\s*=")
"""Options of a Lark rule that an engine which samples by masks cannot follow."""


def grammar_text(params: StructuredOutputsParams) -> str:
    """The grammar in llguidance's own format, JSON.

    Raises RequestError where it cannot even be written; most mistakes show when it is compiled.
    """
    match params.kind:
        case "json":
            assert isinstance(params.json, str)
            return _json_grammar(params.json, params)
        case "json_object":
            return _json_grammar('{"type": "object"}', params)
        case "regex":
            assert params.regex is not None
            from llguidance import LLMatcher

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
    from llguidance import LLMatcher

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


def _lark_grammar(lark: str) -> str:
    # Text alone would be taken for llguidance's own format where it begins with a brace.
    return json.dumps({"grammars": [{"lark_grammar": lark}]})


def _as_lark(grammar: str) -> str:
    if GBNF_RULE.search(grammar):
        from llguidance import grammar_from

        try:
            return str(grammar_from("gbnf", grammar))
        except ValueError as error:
            raise RequestError(f"structured_outputs.grammar: {error}") from None
    for options in RULE_OPTIONS.finditer(grammar):
        option = OPTION.search(re.sub(LITERAL, "", options[1]))
        if option is not None:
            raise RequestError(
                f"structured_outputs.grammar: the option {option[1]} of a rule is not supported"
            )
    return grammar
