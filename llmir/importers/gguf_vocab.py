"""The vocabulary of a GGUF tokenizer: its tokens, their types, and the special ones among them."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from llmir.errors import CorruptModelError
from llmir.importers.gguf_metadata import Metadata, describe


class TokenType(enum.IntEnum):
    """`tokenizer.ggml.token_type`, which are SentencePiece's piece types."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


# What stands for the end of a turn or text in the models that llmir reads.  Chat models end
# a turn with one of them and name another as EOS, so generation stops at any.
_END_TOKENS = frozenset(
    {
        "<|im_end|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|eot|>",
        "<|end|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|end_of_text|>",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Tokens in the order of their ids.

    ids:    token → id, the inverse of `tokens`
    types:  a TokenType (or a number that is none) for each token
    bos, eos, unk, pad:  ids, None where the model has no such token
    ends:   the ids that end generation, EOS first
    """

    tokens: list[str]
    ids: Mapping[str, int]
    types: list[int]
    bos: int | None
    eos: int | None
    unk: int | None
    pad: int | None
    ends: tuple[int, ...]

    def text(self, token_id: int | None) -> str | None:
        return None if token_id is None else self.tokens[token_id]


def read_vocabulary(meta: Metadata, tokens: list[str], defaults: Mapping[str, int]) -> Vocabulary:
    """The vocabulary in a file's metadata.

    Args:
        tokens: `tokenizer.ggml.tokens`.
        defaults: what "bos", "eos" and "unk" are where the file does not say.

    Raises CorruptModelError on a repeated token or an id or type that is not there.
    """
    # llama.cpp names empty tokens like this; there may be several, and names must differ.
    tokens = [token or f"[EMPTY_{index}]" for index, token in enumerate(tokens)]
    ids: dict[str, int] = {}
    for index, token in enumerate(tokens):
        if ids.setdefault(token, index) != index:
            raise CorruptModelError(
                f"{meta.source}: tokenizer.ggml.tokens has {describe(token)} twice, with the ids "
                f"{ids[token]} and {index}"
            )
    types = _read_types(meta, len(tokens))

    def special(name: str, key: str) -> int | None:
        found = meta.get_int(f"tokenizer.ggml.{key}")
        if found is None:
            found = defaults.get(name)
            return found if found is not None and found < len(tokens) else None
        if not 0 <= found < len(tokens):
            raise CorruptModelError(
                f"{meta.source}: tokenizer.ggml.{key} is {found}, but the vocabulary has "
                f"{len(tokens)} tokens"
            )
        return found

    def optional(name: str, key: str) -> int | None:
        # Prompts need neither, and files are careless with both: ids beyond the vocabulary,
        # and 0 for "none", an ordinary token that must stay one.
        if (meta.get_int(f"tokenizer.ggml.{key}") or 0) >= len(tokens):
            return None
        found = special(name, key)
        return None if found is None or types[found] == TokenType.NORMAL else found

    eos = special("eos", "eos_token_id")
    turn_ends = [special("eot", "eot_token_id"), special("eom", "eom_token_id")]
    by_name = sorted(
        ids[token]
        for token in _END_TOKENS & ids.keys()
        if types[ids[token]] in (TokenType.CONTROL, TokenType.USER_DEFINED)
    )
    ends = [end for end in (eos, *turn_ends, *by_name) if end is not None]
    return Vocabulary(
        tokens=tokens,
        ids=ids,
        types=types,
        bos=special("bos", "bos_token_id"),
        eos=eos,
        unk=optional("unk", "unknown_token_id"),
        pad=optional("pad", "padding_token_id"),
        ends=tuple(dict.fromkeys(ends)),
    )


def _read_types(meta: Metadata, count: int) -> list[int]:
    types = meta.get_array("tokenizer.ggml.token_type")
    if types is None:
        return [TokenType.NORMAL] * count
    if len(types) != count or not np.issubdtype(types.dtype, np.integer):
        raise CorruptModelError(
            f"{meta.source}: tokenizer.ggml.token_type should have {count} integers, one for each "
            f"token, but is {describe(types)} of {types.dtype}"
        )
    return types.tolist()
