"""Calls in an output as it comes, in one of the formats that models are trained to write.

     text ──begin──► between calls ──{──► in a call ──}──► between calls ──end──► text

What looks like a call and turns out to be none is text after all.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from llmir.server.tools.call_reader import CallReader
from llmir.server.tools.events import Arguments, CallBegins, Event, Text
from llmir.server.tools.formats import ToolFormat

SEPARATORS = "[],; \t\r\n"


class Parser(Protocol):
    """Turns the pieces of one output into events."""

    def feed(self, text: str) -> list[Event]: ...

    def finish(self) -> list[Event]: ...


class NamedParser:
    """For an output that is the arguments of one function."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._begun = False

    def feed(self, text: str) -> list[Event]:
        if not text:
            return []
        begins: list[Event] = [] if self._begun else [CallBegins(self._name)]
        self._begun = True
        return [*begins, Arguments(text)]

    def finish(self) -> list[Event]:
        return []


class FormatParser:
    """For an output in a model's own format.

    names: of the functions there are; a call of another is text.
    """

    def __init__(self, format: ToolFormat, names: Collection[str]) -> None:
        self._format = format
        self._names = names
        self._buffer = ""
        self._raw = ""  # what stands between the last text, or call, and the buffer
        self._had_call = False  # since the last mark
        self._reader: CallReader | None = None
        self._step = self._at_start if format.bare else self._in_text
        self._events: list[Event] = []

    def feed(self, text: str) -> list[Event]:
        """The next piece of the output; what it tells."""
        self._buffer += text
        while self._buffer and self._step():
            pass
        return self._take_events()

    def finish(self) -> list[Event]:
        """The end of the output; what was held back."""
        in_call = self._reader is not None and self._reader.begun
        # White space, or a bracket, or half a mark.
        behind_call = self._step == self._between_calls and self._had_call
        if not (in_call or behind_call or self._step == self._behind_calls):
            self._say(self._raw + self._buffer)
        self._raw = self._buffer = ""
        return self._take_events()

    # -- steps: each takes something off the buffer; False: it waits for more ------------

    def _at_start(self) -> bool:
        """Where a format has no mark before calls: an output that begins with one."""
        rest = self._buffer.lstrip()
        if not rest:
            return False
        if rest[0] in "{[":
            self._raw, self._buffer = self._buffer[: -len(rest)], rest
            self._step = self._between_calls
        else:
            self._step = self._in_text
        return True

    def _in_text(self) -> bool:
        begin = self._format.begin
        place = self._buffer.find(begin) if begin else -1
        if place < 0:
            num_kept = _held_back(self._buffer, begin)
            cut = len(self._buffer) - num_kept
            self._say(self._buffer[:cut])
            self._buffer = self._buffer[cut:]
            return False
        self._say(self._buffer[:place].rstrip())
        self._raw, self._buffer = begin, self._buffer[place + len(begin) :]
        self._had_call = False
        self._step = self._between_calls
        return True

    def _between_calls(self) -> bool:
        begin, end = self._format.begin, self._format.end
        if begin and self._buffer.startswith(begin):
            self._move(len(begin))  # a mark before each call, and none behind
        elif end and self._buffer.startswith(end):
            self._buffer = self._buffer[len(end) :]
            self._raw = ""
            self._step = self._behind_calls
        elif any(mark.startswith(self._buffer) for mark in (begin, end)):
            return False  # it may be the beginning of one
        elif self._buffer[0] in SEPARATORS:
            self._move(1)
        elif self._buffer[0] == "{":
            self._reader = CallReader(self._names)
            self._step = self._in_call
        elif self._format.named and (self._buffer[0].isalnum() or self._buffer[0] == "_"):
            self._step = self._in_name
        else:
            self._give_up()
        return True

    def _behind_calls(self) -> bool:
        if self._buffer.isspace():
            return False
        self._step = self._in_text
        return True

    def _in_name(self) -> bool:
        """Mistral's newer form: name{…}, name[ARGS]{…}."""
        place = self._buffer.find("{")
        if place < 0:
            return False
        name = self._buffer[:place].partition("[")[0].strip()
        self._reader = CallReader(self._names, name)
        if self._reader.failed:
            self._reader = None
            self._give_up()
        else:
            self._move(place)
            self._step = self._in_call
        return True

    def _in_call(self) -> bool:
        reader = self._reader
        assert reader is not None
        for place, char in enumerate(self._buffer):
            self._events += reader.take(char)
            if reader.failed:
                self._reader = None
                if reader.begun:
                    self._raw, self._buffer = "", self._buffer[place:]
                else:
                    self._move(place)
                self._give_up()
                return True
            if reader.done:
                self._reader = None
                self._had_call = True
                self._raw, self._buffer = "", self._buffer[place + 1 :]
                self._step = self._between_calls
                return True
        self._move(len(self._buffer))
        return False

    def _give_up(self) -> None:
        """These are no calls."""
        self._say(self._raw)
        self._raw = ""
        self._step = self._in_text

    # -- helpers -------------------------------------------------------------------------

    def _move(self, num_chars: int) -> None:
        self._raw += self._buffer[:num_chars]
        self._buffer = self._buffer[num_chars:]

    def _say(self, text: str) -> None:
        if text:
            self._events.append(Text(text))

    def _take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events


def _held_back(text: str, begin: str) -> int:
    """Characters at the end that may be the mark's beginning, or white space before it."""
    num_begun = next(
        (n for n in range(min(len(begin) - 1, len(text)), 0, -1) if text.endswith(begin[:n])), 0
    )
    rest = text[: len(text) - num_begun]
    return num_begun + len(rest) - len(rest.rstrip())
