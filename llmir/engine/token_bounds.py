"""How few tokens a text can have, from its length: a text too long is refused untokenized."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import models

PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
OTHERS = [byte for byte in range(0x100) if byte not in PRINTABLE]
LETTERS = {byte: chr(byte) for byte in PRINTABLE} | {
    byte: chr(0x100 + place) for place, byte in enumerate(OTHERS)
}
"""byte → the character that stands for it in the vocabularies of byte-level BPE (GPT-2's)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBound:
    """What is known of every token.

    longest  most bytes of text that one stands for
    dropped  characters that may have no token
    """

    longest: int
    dropped: tuple[str, ...]

    def min_tokens(self, text: str) -> int:
        """How many tokens `text` has at least."""
        # A character is a byte or more.
        num_kept = len(text) - sum(map(text.count, self.dropped))
        return -(-num_kept // self.longest)


def token_bound(backend: tokenizers.Tokenizer) -> TokenBound | None:
    """The bound that a tokenizer allows to state; None: none.

    That is for byte-level BPE whose pipeline drops and joins nothing: the bytes of the tokens are
    those of the text, one by one.
    """
    if not isinstance(backend.model, models.BPE) or backend.normalizer is not None:
        return None
    if not _keeps_every_byte(backend.pre_tokenizer):
        return None
    added = backend.get_added_tokens_decoder().values()
    if any(token.lstrip or token.rstrip for token in added):
        return None  # they take in the spaces beside them, as many as there are
    # A byte that has no token is dropped, as some control characters are.
    missing = [byte for byte, letter in LETTERS.items() if backend.token_to_id(letter) is None]
    if any(0x80 <= byte < 0xC0 for byte in missing):
        return None
    # Of other characters than ASCII's the bytes after the first are kept.
    dropped = tuple(chr(byte) for byte in missing if byte < 0x80)
    words = [*map(len, backend.get_vocab(with_added_tokens=False))]  # a letter is a byte
    whole = [len(token.content.encode()) for token in added]
    return TokenBound(longest=max(words + whole), dropped=dropped)


def _keeps_every_byte(pre_tokenizer: Any) -> bool:
    if pre_tokenizer is None:
        return False
    parts = _parts(json.loads(pre_tokenizer.__getstate__()))
    kept = all(
        part["type"] in ("ByteLevel", "Digits")
        or (part["type"] == "Split" and part["behavior"] != "Removed")
        for part in parts
    )
    return kept and any(part["type"] == "ByteLevel" for part in parts)


def _parts(state: dict[str, Any]) -> list[dict[str, Any]]:
    if state["type"] != "Sequence":
        return [state]
    return [part for inner in state["pretokenizers"] for part in _parts(inner)]
