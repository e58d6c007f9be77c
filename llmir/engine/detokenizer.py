"""Text as tokens arrive: characters split over tokens, and stop strings that span them.

    token ids ─ IncrementalDecoder ─ whole characters ─ StopChecker ─ text that may be shown

Both hold back what a later token could still change, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmir.engine.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"
"""What decoders put for bytes that are not (yet) a character."""

CONTEXT_TOKENS = 6
"""Prompt tokens before the output that tell a decoder how the output's first token reads."""

WINDOW_TOKENS = 64
"""Tokens without a single character boundary after which bytes are taken to be garbage."""


class IncrementalDecoder:
    """Decodes a growing list of tokens without decoding it all again.

    The text of a token depends on its neighbours (SentencePiece drops the space before the
    first one, a character's bytes may lie in several), so a window of the last few tokens
    is decoded each time, and what the window said before is left out:

        tokens   … t5 t6 t7 | t8 t9        ids[start:] is the window
        text     ─── sent ──►├─ new ─►     sent counts characters of the window's text

    The window begins where the text before it was whole.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_token_ids: Sequence[int] = (),
        *,
        skip_special_tokens: bool = True,
    ) -> None:
        self._tokenizer = tokenizer
        # Special tokens are dropped here, not by the decoder: one at the head of the window
        # would else make the next token look like the first of a text.
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._ids = [i for i in prompt_token_ids[-CONTEXT_TOKENS:] if i not in self._skipped]
        self._start = 0
        self._boundary = len(self._ids)  # text up to here has been sent, and was whole
        self._sent = len(self._text())

    def push(self, token_id: int) -> str:
        """Take the next token; returns the characters that became certain."""
        if token_id in self._skipped:
            return ""
        self._ids.append(token_id)
        text = self._text()
        certain = len(text.rstrip(REPLACEMENT)) if text.endswith(REPLACEMENT) else len(text)
        whole = certain == len(text)
        stuck = len(self._ids) - self._start > WINDOW_TOKENS
        if stuck:
            certain, whole = len(text), True
            self._boundary = max(self._boundary, len(self._ids) - 1)
        new = text[self._sent : certain]
        self._sent = max(self._sent, certain)
        # A token that adds nothing yet, such as a lone space that the decoder strips, must
        # not become the whole window.
        if whole and (new or stuck):
            self._start, self._boundary = self._boundary, len(self._ids)
            self._sent = len(self._text())
        return new

    def finish(self) -> str:
        """What was held back: an unfinished character, as the decoder shows it."""
        rest = self._text()[self._sent :]
        self._sent += len(rest)
        return rest

    def _text(self) -> str:
        return self._tokenizer.decode(self._ids[self._start :], skip_special_tokens=False)


class StopChecker:
    """Finds stop strings in text that arrives in pieces."""

    def __init__(self, stop: Sequence[str], *, include_stop: bool = False) -> None:
        self._stop = tuple(stop)
        self._include_stop = include_stop
        self._held = ""

    def push(self, new: str) -> tuple[str, str | None]:
        """Take more text; returns (text that may be shown, the stop string found or None).

        The earliest stop string in the text wins, the longest among those at one place.
        After one is found nothing more may be pushed.
        """
        text = self._held + new
        found = [(text.find(s), -len(s), s) for s in self._stop if s in text]
        if found:
            at, _, stop = min(found)
            self._held = ""
            return text[: at + len(stop) if self._include_stop else at], stop
        hold = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold], None

    def finish(self) -> str:
        """Text held back because it could have been the start of a stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with, `stop` itself excluded."""
    for size in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0


class Detokenizer:
    """The text of one output.

    Attributes:
        text: what may be shown so far; only ever grows.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_token_ids: Sequence[int] = (),
        *,
        stop: Sequence[str] = (),
        include_stop: bool = False,
        skip_special_tokens: bool = True,
    ) -> None:
        self.text = ""
        self._decoder = IncrementalDecoder(
            tokenizer, prompt_token_ids, skip_special_tokens=skip_special_tokens
        )
        self._checker = StopChecker(stop, include_stop=include_stop)

    def push(self, token_id: int, *, check_stop: bool = True) -> str | None:
        """Add a token; returns the stop string that ends the text, if one does."""
        new = self._decoder.push(token_id)
        if not check_stop:
            self.text += new
            return None
        shown, stop = self._checker.push(new)
        self.text += shown
        return stop

    def finish(self) -> str | None:
        """Show what was held back; returns a stop string that only now became visible."""
        shown, stop = self._checker.push(self._decoder.finish())
        self.text += shown + self._checker.finish()
        return stop
