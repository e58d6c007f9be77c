"""The pre-tokenizers of byte-level BPE, by the name that `tokenizer.ggml.pre` has.

GGUF gives a name only; what it stands for is in the tokenizer.json of the model
that it was coined for, and is repeated here in the `tokenizers` library's form.
The patterns are those of the published tokenizers (GPT-2, Llama 3, Qwen2, Mistral
Nemo), not llama.cpp's adaptations of them to its own regex engine.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llmir.errors import UnsupportedModelError
from llmir.importers.gguf_metadata import describe

Json = dict[str, Any]

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_PUNCTUATION_AND_SPACE = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_PUNCTUATION_AND_SPACE}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_PUNCTUATION_AND_SPACE}"

_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _byte_level(use_regex: bool) -> Json:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,  # GPT-2's own pattern
    }


def _split(pattern: str) -> tuple[Json, ...]:
    return (
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
        _byte_level(use_regex=False),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PreTokenizer:
    """How text is prepared for byte-level BPE.

    steps:          pre-tokenizers, applied in order
    normalizer:     applied to the text first, or None
    ignore_merges:  a piece that is a token is taken whole, whatever the merges say
    add_bos:        what holds if the file does not say
    """

    steps: tuple[Json, ...] = field(default=(_byte_level(use_regex=True),))
    normalizer: Json | None = None
    ignore_merges: bool = False
    add_bos: bool = False

    def to_json(self) -> Json:
        if len(self.steps) == 1:
            return self.steps[0]
        return {"type": "Sequence", "pretokenizers": list(self.steps)}


_GPT2 = PreTokenizer()
_DIGITS = PreTokenizer(
    steps=({"type": "Digits", "individual_digits": True}, _byte_level(use_regex=True))
)
_LLAMA_BPE = PreTokenizer(steps=_split(_LLAMA3), ignore_merges=True, add_bos=True)

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "default": _GPT2,
    "gpt-2": _GPT2,
    "llama-bpe": _LLAMA_BPE,
    "llama-v3": _LLAMA_BPE,
    "llama3": _LLAMA_BPE,
    "qwen2": PreTokenizer(steps=_split(_QWEN2), normalizer={"type": "NFC"}),
    "refact": _DIGITS,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "tekken": PreTokenizer(steps=_split(_TEKKEN), ignore_merges=True, add_bos=True),
}


def pre_tokenizer(name: str, source: str) -> PreTokenizer:
    """Raises UnsupportedModelError, listing the known, on a name that is not one of them."""
    if name not in PRE_TOKENIZERS:
        raise UnsupportedModelError(
            f"{source}: tokenizer.ggml.pre is {describe(name)}; "
            f"known pre-tokenizers: {', '.join(sorted(PRE_TOKENIZERS))}"
        )
    return PRE_TOKENIZERS[name]
