"""From the text of one output to a message's content and calls, in OpenAI's shape."""

from __future__ import annotations

import secrets
import string
from typing import TYPE_CHECKING

from llmir.server.protocol.tools import ToolCall, ToolCallDelta
from llmir.server.tools.events import Arguments, CallBegins, Text
from llmir.server.tools.use import ToolUse

if TYPE_CHECKING:
    from llmir.server.protocol.chat import ChatDelta

LETTERS = string.ascii_letters + string.digits


class MessageWriter:
    """Takes the pieces of one output.

    Attributes:
        content: the text so far that is no call.
        calls: those so far.
    """

    def __init__(self, use: ToolUse) -> None:
        self.content = ""
        self.calls: list[ToolCall] = []
        self._use = use
        self._parser = use.parser()
        self._dropping = False

    @property
    def ends_in_calls(self) -> bool:
        """Whether "tool_calls" is why the output ended.

        As with OpenAI, it is not where the client has named the one function to be called.
        """
        return bool(self.calls) and self._use.kind != "named"

    def feed(self, text: str, *, finished: bool) -> ChatDelta:
        """What a piece of the output adds to the message."""
        events = self._parser.feed(text)
        if finished:
            events += self._parser.finish()
        content = ""
        calls: dict[int, ToolCallDelta] = {}
        for event in events:
            match event:
                case Text(text):
                    content += text
                case CallBegins(name):
                    self._begin(name, calls)
                case Arguments(text) if not self._dropping:
                    self._extend(text, calls)
        self.content += content
        delta: ChatDelta = {"content": content} if content else {}
        if calls:
            delta["tool_calls"] = list(calls.values())
        return delta

    def _begin(self, name: str, calls: dict[int, ToolCallDelta]) -> None:
        index = len(self.calls)
        # A request for one call gets one, whatever the model goes on to write.
        self._dropping = index > 0 and not self._use.parallel
        if self._dropping:
            return
        id = self._new_id()
        self.calls.append(
            {"id": id, "type": "function", "function": {"name": name, "arguments": ""}}
        )
        calls[index] = {
            "index": index,
            "id": id,
            "type": "function",
            "function": {"name": name, "arguments": ""},
        }

    def _extend(self, text: str, calls: dict[int, ToolCallDelta]) -> None:
        index = len(self.calls) - 1
        self.calls[index]["function"]["arguments"] += text
        delta = calls.setdefault(index, {"index": index, "function": {"arguments": ""}})
        delta["function"]["arguments"] += text

    def _new_id(self) -> str:
        if self._use.format is not None and self._use.format.short_ids:
            return "".join(secrets.choice(LETTERS) for _ in range(9))
        return "call_" + secrets.token_hex(12)
