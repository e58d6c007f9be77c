"""SentencePiece BPE in terms of the `tokenizers` library's BPE.

SentencePiece merges whichever neighbours make the piece with the best score; the
library merges the pair that is first in a list.  So the list has, for every piece
in the order of their scores, each way to cut it into two pieces.
"""

from __future__ import annotations

import numpy as np

from llmir.errors import CorruptModelError, UnsupportedModelError
from llmir.importers.gguf_metadata import Metadata, describe
from llmir.importers.gguf_pretokenize import Json
from llmir.importers.gguf_vocab import TokenType, Vocabulary

SPACE = "\u2581"  # ▁, which stands for a space in a piece

# Cutting a piece everywhere takes time in the square of its length.  SentencePiece's own
# limit is 16 characters unless the trainer was told otherwise.
_MAX_PIECE_CHARS = 2048

_MERGED_TYPES = (TokenType.NORMAL, TokenType.UNUSED)


def merges_from_scores(meta: Metadata, vocab: Vocabulary) -> list[tuple[str, str]]:
    """Pairs of pieces, the first to be merged first.

    Raises:
        CorruptModelError: there is not one finite score for every token.
        UnsupportedModelError: a piece of more characters than any tokenizer has.
    """
    scores = meta.get_array("tokenizer.ggml.scores")
    if scores is None:
        raise meta.missing("tokenizer.ggml.scores", "an array of numbers")
    if len(scores) != len(vocab.tokens) or not np.isfinite(scores).all():
        raise CorruptModelError(
            f"{meta.source}: tokenizer.ggml.scores should have {len(vocab.tokens)} finite numbers, "
            f"one for each token, but is {describe(scores)}"
        )
    # Only what the trainer made is merged: control and byte pieces never come from text.
    pieces = {
        token
        for token, kind in zip(vocab.tokens, vocab.types, strict=True)
        if kind in _MERGED_TYPES
    }
    merges: list[tuple[str, str]] = []
    # Stable: among equal scores, the lower id first.
    for token_id in np.argsort(-scores.astype(np.float64), kind="stable"):
        piece = vocab.tokens[token_id]
        if piece not in pieces:
            continue
        if len(piece) > _MAX_PIECE_CHARS:
            raise UnsupportedModelError(
                f"{meta.source}: the token {describe(piece)} has {len(piece)} characters; "
                f"llmir reads SentencePiece tokens of {_MAX_PIECE_CHARS} at most"
            )
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in pieces and right in pieces:
                merges.append((left, right))
    return merges


def sentencepiece_pipeline(add_space_prefix: bool) -> tuple[Json, Json]:
    """Normalizer and decoder, as in the tokenizer.json of Llama 2.

    SentencePiece always adds its prefix space, to text that begins with a space too, which
    is why it is a normalizer here and not the library's Metaspace.
    """
    spaces: Json = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    decoders: list[Json] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if not add_space_prefix:
        return spaces, {"type": "Sequence", "decoders": decoders}
    prefix: Json = {"type": "Prepend", "prepend": SPACE}
    decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return (
        {"type": "Sequence", "normalizers": [prefix, spaces]},
        {"type": "Sequence", "decoders": decoders},
    )
