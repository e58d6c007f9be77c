"""GGUF metadata → tokenizer.json, tokenizer_config.json and generation_config.json.

Two kinds of `tokenizer.ggml.model` are read, both byte-pair encodings:

    gpt2   byte-level BPE; the merges are in the file, the pre-tokenizer is named in it
    llama  SentencePiece BPE; the merges follow from the scores, unknown characters
           fall back to byte tokens

The text is the format of the `tokenizers` library, version 1.0.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from llmir.errors import CorruptModelError, UnsupportedModelError
from llmir.importers.base import TokenizerFiles
from llmir.importers.gguf_metadata import Metadata, describe
from llmir.importers.gguf_pretokenize import Json, pre_tokenizer
from llmir.importers.gguf_sentencepiece import merges_from_scores, sentencepiece_pipeline
from llmir.importers.gguf_vocab import TokenType, Vocabulary, read_vocabulary

KNOWN_MODELS = ("gpt2", "llama")

# SentencePiece's ids where a file has none (llama.cpp assumes the same).
_SENTENCEPIECE_DEFAULTS = {"unk": 0, "bos": 1, "eos": 2}

# Recommended sampling: the key in GGUF and in generation_config.json.
_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pipeline:
    """The parts of a tokenizer.json that differ between the two kinds."""

    normalizer: Json | None
    pre_tokenizer: Json | None
    decoder: Json
    model: Json
    add_bos: bool


def read_tokenizer(meta: Metadata, vocab_size: int) -> TokenizerFiles | None:
    """The tokenizer in a file's metadata, None if it carries none.

    Args:
        vocab_size: the model's; the tokenizer may have fewer tokens, not more.

    Raises:
        UnsupportedModelError: a kind of tokenizer or pre-tokenizer that llmir does not have.
        CorruptModelError: a vocabulary that contradicts itself or the model.
    """
    kind = meta.get_str("tokenizer.ggml.model")
    tokens = meta.get_strings("tokenizer.ggml.tokens")
    if kind in (None, "none", "no_vocab") or not tokens:
        return None
    if kind not in KNOWN_MODELS:
        raise UnsupportedModelError(
            f"{meta.source}: tokenizer.ggml.model is {describe(kind or '')}; "
            f"known tokenizers: {', '.join(KNOWN_MODELS)}"
        )
    if len(tokens) > vocab_size:
        raise CorruptModelError(
            f"{meta.source}: tokenizer.ggml.tokens has {len(tokens)} tokens, but the model's "
            f"vocabulary has {vocab_size}"
        )
    if kind == "llama":
        vocab = read_vocabulary(meta, tokens, _SENTENCEPIECE_DEFAULTS)
        pipeline = _sentencepiece(meta, vocab)
    else:
        vocab = read_vocabulary(meta, tokens, {})
        pipeline = _byte_level(meta, vocab)
    add_bos = _adds(meta, "bos", vocab.bos, pipeline.add_bos)
    add_eos = _adds(meta, "eos", vocab.eos, False)
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(vocab),
        "normalizer": pipeline.normalizer,
        "pre_tokenizer": pipeline.pre_tokenizer,
        "post_processor": _template(vocab, add_bos, add_eos),
        "decoder": pipeline.decoder,
        "model": pipeline.model,
    }
    return TokenizerFiles(
        tokenizer_json=json.dumps(tokenizer, ensure_ascii=False),
        tokenizer_config=_tokenizer_config(meta, vocab, add_bos, add_eos),
        generation_config=_generation_config(meta, vocab),
    )


def _adds(meta: Metadata, name: str, token_id: int | None, default: bool) -> bool:
    """Whether BOS or EOS is put around a prompt."""
    wanted = meta.get_bool(f"tokenizer.ggml.add_{name}_token")
    if wanted and token_id is None:
        raise CorruptModelError(
            f"{meta.source}: tokenizer.ggml.add_{name}_token is true, but there is no "
            f"tokenizer.ggml.{name}_token_id"
        )
    return (default if wanted is None else wanted) and token_id is not None


def _bpe(vocab: Vocabulary, merges: list[tuple[str, str]]) -> Json:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": dict(vocab.ids),
        "merges": merges,
    }


def _byte_level(meta: Metadata, vocab: Vocabulary) -> _Pipeline:
    pre = pre_tokenizer(meta.get_str("tokenizer.ggml.pre") or "default", meta.source)
    merges = meta.get_strings("tokenizer.ggml.merges")
    if merges is None:
        raise meta.missing("tokenizer.ggml.merges", "an array of strings")
    pairs = [_merge(merge, vocab, meta.source) for merge in merges]
    return _Pipeline(
        normalizer=pre.normalizer,
        pre_tokenizer=pre.to_json(),
        decoder={
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
        model=_bpe(vocab, pairs) | {"ignore_merges": pre.ignore_merges},
        add_bos=pre.add_bos,
    )


def _merge(merge: str, vocab: Vocabulary, source: str) -> tuple[str, str]:
    """Left and right of "left right"; both and what they make must be tokens."""
    split = merge.find(" ", 1)  # a token may itself begin with a space
    left, right = merge[: max(split, 0)], merge[split + 1 :]
    if split < 0 or not {left, right, left + right} <= vocab.ids.keys():
        raise CorruptModelError(
            f"{source}: tokenizer.ggml.merges has {describe(merge)}; expected two tokens with a "
            f"space between them, which together make a token of the vocabulary"
        )
    return left, right


def _sentencepiece(meta: Metadata, vocab: Vocabulary) -> _Pipeline:
    for key in ("remove_extra_whitespaces", "precompiled_charsmap"):
        value = meta.values.get(f"tokenizer.ggml.{key}")
        if value is not None and value is not False:
            raise UnsupportedModelError(
                f"{meta.source}: tokenizer.ggml.{key} is {describe(value)}, which llmir does not "
                f"support in SentencePiece tokenizers"
            )
    add_space = meta.get_bool("tokenizer.ggml.add_space_prefix")
    normalizer, decoder = sentencepiece_pipeline(add_space is not False)
    byte_tokens = {f"<0x{byte:02X}>" for byte in range(256)}
    model = _bpe(vocab, merges_from_scores(meta, vocab)) | {
        "unk_token": vocab.text(vocab.unk),
        "fuse_unk": True,
        "byte_fallback": byte_tokens <= vocab.ids.keys(),
    }
    return _Pipeline(
        normalizer=normalizer, pre_tokenizer=None, decoder=decoder, model=model, add_bos=True
    )


def _added_tokens(vocab: Vocabulary) -> list[Json]:
    """Tokens that are found in the text before anything else is done with it.

    Control tokens are special, that is left out of decoded text; user-defined are not.
    """
    named = {vocab.bos, vocab.eos, vocab.unk, vocab.pad, *vocab.ends}
    added: list[Json] = []
    for token_id, (token, kind) in enumerate(zip(vocab.tokens, vocab.types, strict=True)):
        special = token_id in named or kind in (TokenType.CONTROL, TokenType.UNKNOWN)
        if special or kind == TokenType.USER_DEFINED:
            added.append(
                {
                    "id": token_id,
                    "content": token,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": special,
                }
            )
    return added


def _template(vocab: Vocabulary, add_bos: bool, add_eos: bool) -> Json | None:
    """The post-processor that puts BOS and EOS around each sequence; None without either."""
    if not (add_bos or add_eos):
        return None

    def around(sequence: str, type_id: int) -> list[Json]:
        parts: list[Json] = [{"Sequence": {"id": sequence, "type_id": type_id}}]
        if add_bos:
            parts.insert(0, {"SpecialToken": {"id": vocab.text(vocab.bos), "type_id": type_id}})
        if add_eos:
            parts.append({"SpecialToken": {"id": vocab.text(vocab.eos), "type_id": type_id}})
        return parts

    used = [i for i, add in ((vocab.bos, add_bos), (vocab.eos, add_eos)) if add and i is not None]
    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": around("A", 0) + around("B", 1),
        "special_tokens": {
            vocab.tokens[i]: {"id": vocab.tokens[i], "ids": [i], "tokens": [vocab.tokens[i]]}
            for i in used
        },
    }


def _tokenizer_config(meta: Metadata, vocab: Vocabulary, add_bos: bool, add_eos: bool) -> Json:
    config: Json = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": add_bos,
        "add_eos_token": add_eos,
        "clean_up_tokenization_spaces": False,
    }
    for name in ("bos", "eos", "unk", "pad"):
        text = vocab.text(getattr(vocab, name))
        if text is not None:
            config[f"{name}_token"] = text
    template = meta.get_str("tokenizer.chat_template")
    if template is not None:
        config["chat_template"] = template
    return config


def _generation_config(meta: Metadata, vocab: Vocabulary) -> Json:
    config: Json = {}
    if vocab.bos is not None:
        config["bos_token_id"] = vocab.bos
    if vocab.ends:
        config["eos_token_id"] = vocab.ends[0] if len(vocab.ends) == 1 else list(vocab.ends)
    if vocab.pad is not None:
        config["pad_token_id"] = vocab.pad
    for key, name in _SAMPLING.items():
        value = meta.get_float(f"general.sampling.{key}")
        if value is not None:
            config[name] = int(value) if key == "top_k" else value
    return config
