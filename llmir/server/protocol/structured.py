"""Asking for outputs of a certain form, in OpenAI's words and in vLLM's."""

from __future__ import annotations

STRUCTURED = dict.fromkeys(
    (
        "response_format",
        "structured_outputs",
        "guided_json",
        "guided_regex",
        "guided_choice",
        "guided_grammar",
        "guided_decoding_backend",
        "guided_whitespace_pattern",
    ),
    "this llmir has no structured output",
)
TOOLS = dict.fromkeys(
    ("tools", "tool_choice", "parallel_tool_calls"), "this llmir does not parse tool calls"
)
