"""The bytes of a token, of which a character may have several."""

from __future__ import annotations

import re
from functools import cache

from llmir.engine import Tokenizer

REPLACEMENT = "\ufffd"
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def token_bytes(tokenizer: Tokenizer, token_id: int, text: str) -> bytes:
    """The bytes that a token stands for; those of tokens in a row are UTF-8.

    text: how the token reads alone.
    """
    if REPLACEMENT not in text:
        return text.encode()
    # Half a character, most likely: its bytes are in the vocabulary's own spelling of it.
    piece = tokenizer.backend.id_to_token(token_id) or ""
    if found := _BYTE_PIECE.fullmatch(piece):
        return bytes.fromhex(found[1])
    spelling = _byte_level()
    if piece and all(char in spelling for char in piece):
        return bytes(spelling[char] for char in piece)
    return text.encode()


@cache
def _byte_level() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable ones stand for themselves, others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    spelled = {chr(byte): byte for byte in printable}
    return spelled | {chr(0x100 + place): byte for place, byte in enumerate(others)}
