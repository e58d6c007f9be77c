"""A model's tokens as bytes, in the form in which llguidance wants them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import tokenizers
from llguidance import LLTokenizer

from llmir.engine.tokenizer import Tokenizer
from llmir.errors import RequestError

CHECKED_TOKENS = 1000
REPLACEMENT = "\ufffd"
NO_TOKEN = "<|llmir: no token of the model|>"


class Vocabulary:
    """The tokens of one model.

    Args:
        tokenizer: whose `tokenizers` library object knows the bytes.
        vocab_size: of the model; ids that the tokenizer does not have are never allowed.
        eos_ids: those that the tokenizer has are in a mask where an output may end.

    Attributes:
        llg: llguidance's tokenizer, of at least vocab_size tokens.
        eos_ids: as given, those alone that the tokenizer has.
        never_ids: tokens in masks that the model does not have.

    Raises RequestError for a kind of tokenizer whose bytes cannot be worked out.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_ids: Sequence[int]) -> None:
        plain = _without_prefix_space(json.loads(tokenizer.backend.to_str()))
        backend = tokenizers.Tokenizer.from_str(json.dumps(plain))
        self.eos_ids = tuple(i for i in eos_ids if backend.id_to_token(i) is not None)
        self.never_ids: tuple[int, ...] = ()
        known_eos = list(self.eos_ids)
        if not known_eos:
            # The library cannot do without, and takes token 0 where it is told none.
            backend.add_special_tokens([NO_TOKEN])
            added = backend.token_to_id(NO_TOKEN)
            assert added is not None
            known_eos = [added]
            self.never_ids = (added,) if added < vocab_size else ()
        size = max(vocab_size, int(backend.get_vocab_size(with_added_tokens=True)))
        try:
            self.llg = LLTokenizer(backend.to_str(), n_vocab=size, eos_token=known_eos)
        except ValueError as error:
            raise RequestError(
                f"structured_outputs cannot be used with this model's tokenizer: {error}"
            ) from None
        self._check(tokenizer)

    @property
    def num_words(self) -> int:
        """32-bit words of a mask."""
        return -(-int(self.llg.vocab_size) // 32)

    def _check(self, tokenizer: Tokenizer) -> None:
        """Compare bytes with what the tokenizer decodes, for tokens all over the vocabulary.

        A constraint on other bytes than those of the text would hold for nothing.
        """
        for token_id in range(0, tokenizer.vocab_size, 1 + tokenizer.vocab_size // CHECKED_TOKENS):
            missing = tokenizer.backend.id_to_token(token_id) is None
            text = tokenizer.token_text(token_id)
            if missing or REPLACEMENT in text or self.llg.is_special_token(token_id):
                continue
            if self.llg.decode_bytes([token_id]) != text.encode():
                raise RequestError(
                    "structured_outputs cannot be used with this model's tokenizer: its token "
                    f"{token_id} reads {text!r}, not {self.llg.decode_str([token_id])!r}"
                )


def _without_prefix_space(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer.json that adds no space before a text, and whose decoder is of a known kind.

    llguidance encodes what a grammar leaves no choice about, from the middle of an output.
    """
    for step in _steps(tokenizer.get("pre_tokenizer")):
        if step.get("type") == "ByteLevel":
            step["add_prefix_space"] = False
        elif step.get("type") == "Metaspace":
            step["prepend_scheme"] = "never"
    for step in _steps(tokenizer.get("decoder")):
        if step.get("type") == "Metaspace":
            space = {"type": "Replace", "pattern": {"String": step["replacement"]}, "content": " "}
            decoders = [space, {"type": "ByteFallback"}, {"type": "Fuse"}]
            tokenizer["decoder"] = {"type": "Sequence", "decoders": decoders}
    return tokenizer


def _steps(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a part of a tokenizer, which may be nested sequences of such."""
    if part is None:
        return []
    if part.get("type") != "Sequence":
        return [part]
    nested = part.get("pretokenizers") or part.get("decoders") or []
    return [step for inner in nested for step in _steps(inner)]
