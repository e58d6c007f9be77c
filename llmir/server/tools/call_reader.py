"""One call, `{"name": …, "arguments": {…}}`, read a character at a time.

The arguments go on as they come, once the name is known; so a client sees a long argument grow.
"""

from __future__ import annotations

import json
from collections.abc import Collection

from llmir.server.tools.events import Arguments, CallBegins, Event

ARGUMENTS = ("arguments", "parameters")


class JsonValue:
    """Finds where a JSON value ends.  What is inside of it is not checked.

    Attributes:
        text: of the value so far.
        ended: whether that is all of it.
    """

    def __init__(self) -> None:
        self.text = ""
        self.ended = False
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def take(self, char: str) -> bool:
        """Whether a character belongs to the value; False: the value ended before it."""
        if self._in_string:
            self._take_in_string(char)
        elif char == '"':
            self._in_string = True
        elif char in "{[":
            self._depth += 1
        elif self._depth == 0 and char in ",]} \t\r\n":
            # A number, or a word, has no last character of its own.
            self.ended = True
            return False
        elif char in "}]":
            self._depth -= 1
            self.ended = self._depth == 0
        self.text += char
        return True

    def _take_in_string(self, char: str) -> None:
        if self._escaped:
            self._escaped = False
        elif char == "\\":
            self._escaped = True
        elif char == '"':
            self._in_string = False
            self.ended = self._depth == 0


class CallReader:
    """Reads a call of one of some functions.

    name: given where it stands before the arguments; then these are all there is to read.

    Attributes:
        begun: whether a CallBegins has been given, which cannot be taken back.
        done: whether the call is read.
        failed: whether this is no call, or goes on as none.
    """

    def __init__(self, names: Collection[str], name: str | None = None) -> None:
        self.begun = False
        self.done = False
        self.failed = name is not None and name not in names
        self._names = names
        self._name = name
        self._bare = name is not None
        self._key: str | None = ARGUMENTS[0] if self._bare else None
        self._value: JsonValue | None = None
        self._expected = ":" if self._bare else "{"
        self._held = ""  # arguments that came before the name
        self._has_arguments = False

    def take(self, char: str) -> list[Event]:
        """The next character, which may be white space between values."""
        events: list[Event] = []
        if self._value is not None:
            taken, events = self._in_value(self._value, char)
            if taken:
                return events
        if not (char.isspace() or self.failed):
            events += self._between(char)
        return events

    def _between(self, char: str) -> list[Event]:
        match self._expected, char:
            case "{", "{":
                self._expected = "key"
            case (("key" | "next key"), '"'):
                self._key = None
                self._begin_value(char)
            case "colon", ":":
                self._expected = ":"
            case ":", _ if char not in ",:]}" and not (self._bare and char != "{"):
                return self._begin_value(char)
            case ",", ",":
                self._expected = "next key"
            case (("key" | ","), "}"):
                return self._end()
            case _:
                self.failed = True
        return []

    def _begin_value(self, char: str) -> list[Event]:
        if self._expected == ":" and self._key in ARGUMENTS:
            if self._has_arguments:
                self.failed = True
                return []
            self._has_arguments = True
        self._value = JsonValue()
        return self._in_value(self._value, char)[1]

    def _in_value(self, value: JsonValue, char: str) -> tuple[bool, list[Event]]:
        """Whether the character is the value's, and not behind it; and what became known."""
        taken = value.take(char)
        events: list[Event] = []
        # Arguments that are text, or missing, are known when they have ended.
        if taken and self._key in ARGUMENTS and value.text[0] == "{":
            events = self._arguments(char)
        if value.ended:
            self._value = None
            events += self._take_value(value.text)
        return taken, events

    def _take_value(self, text: str) -> list[Event]:
        if self._expected in ("key", "next key"):
            self._key, self._expected = _parsed_string(text), "colon"
            self.failed = self._key is None
            return []
        self._expected = ","
        if self._key == "name":
            name = _parsed_string(text)
            self.failed = self._name is not None or name not in self._names
            self._name = name
            return self._arguments("") if self._held and not self.failed else []
        if self._key in ARGUMENTS:
            return self._end_arguments(text)
        return []

    def _end_arguments(self, text: str) -> list[Event]:
        self.done = self._bare
        if text[0] == "{":
            return []
        inner = "{}" if text == "null" else _parsed_string(text)
        if inner is None:
            self.failed = True
            return []
        return self._arguments(inner)

    def _arguments(self, text: str) -> list[Event]:
        if self._name is None:
            self._held += text
            return []
        events: list[Event] = []
        if not self.begun:
            self.begun = True
            events.append(CallBegins(self._name))
        if self._held or text:
            events.append(Arguments(self._held + text))
            self._held = ""
        return events

    def _end(self) -> list[Event]:
        if self._name is None:
            self.failed = True
            return []
        self.done = True
        return [] if self._has_arguments else self._arguments("{}")


def _parsed_string(text: str) -> str | None:
    try:
        value = json.loads(text, strict=False)
    except ValueError:
        return None
    return value if isinstance(value, str) else None
