"""Conversations with tools for chat templates that know none, as the demo model's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from llmir.server.tools.formats import ToolFormat

Message = dict[str, Any]


def with_tools(
    messages: Sequence[Message], tools: Sequence[dict[str, Any]], format: ToolFormat
) -> list[Message]:
    """The conversation with the tools in its system message, and how they are called."""
    text = _instructions(tools, format)
    if messages[0]["role"] == "system":
        first, *rest = messages
        return [{**first, "content": f"{first['content']}\n\n{text}"}, *rest]
    return [{"role": "system", "content": text}, *messages]


def _instructions(tools: Sequence[dict[str, Any]], format: ToolFormat) -> str:
    functions = json.dumps([tool["function"] for tool in tools], ensure_ascii=False)
    example = '[{"name": "the function\'s name", "arguments": {"an argument": "its value"}}]'
    return (
        "You can call functions. These are the functions that there are, with the JSON schemas "
        f"of their parameters:\n<tools>{functions}</tools>\n\n"
        "To call functions, answer with the calls and nothing else, one object for each:\n"
        f"{format.begin}{example}{format.end}\n"
        "Where no function is of use, answer in words."
    )


def without_tool_messages(messages: Sequence[Message], format: ToolFormat) -> list[Message]:
    """The conversation with earlier calls, and what came of them, as text.

    Results in a row become one message of the user, as many templates want turns.
    """
    plain: list[Message] = []
    was_result = False
    for message in messages:
        is_result = message["role"] == "tool"
        if is_result:
            text = f"<tool_response>\n{message['content']}\n</tool_response>"
            if was_result:
                plain[-1]["content"] += "\n" + text
            else:
                plain.append({"role": "user", "content": text})
        elif message.get("tool_calls"):
            plain.append(_with_calls_as_text(message, format))
        else:
            plain.append(message)
        was_result = is_result
    return plain


def _with_calls_as_text(message: Message, format: ToolFormat) -> Message:
    calls = [call["function"] for call in message["tool_calls"]]
    text = f"{format.begin}{json.dumps(calls, ensure_ascii=False)}{format.end}"
    content = message["content"]
    rest = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**rest, "content": f"{content}\n{text}" if content else text}
