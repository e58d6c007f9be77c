"""Tokenizers built from GGUF metadata, against transformers' and sentencepiece's."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
import transformers
from tokenizers import pre_tokenizers

from llmir.importers.base import TokenizerFiles
from llmir.importers.gguf import import_gguf

from . import gguf_files as tiny

_PIECES = [
    *(
        "hello",
        " world",
        "the",
        "The",
        " in",
        "CamelCaseWord",
        "snake_case_1",
        "don't",
        "'LL",
        "'s",
    ),
    *(" ", "  ", "    ", "\n", "\n\n\t", "\r\n", "\t", "\u00a0", "\u2003", "\u200b", "\ufeff"),
    *(
        "def f(x):\n    return x + 1",
        "#!@$%^&*()",
        "http://x.y/z?q=1",
        "</s>",
        "<|",
        "|>",
        "…",
        "—",
    ),
    *(
        "ünïcödé",
        "e\u0301",
        "Å",
        "ﬀ",
        "日本語テキスト",
        "العربية",
        "हिन्दी",
        "「」",
        "𝔘𝔫𝔦",
        "Ġ",
        "▁",
    ),
    *("🙂", "👩‍👩‍👧", "🇫🇷", "1234567", "3.14", "٣٤٥", "²½Ⅷ", "０１", "7"),
]


def varied_texts(count: int, seed: int, extra: list[str] | None = None) -> list[str]:
    """Strings of words, code, white space, digits, scripts, emoji, and random characters."""
    rng = random.Random(seed)
    pieces = _PIECES + (extra or [])
    ranges = ((0x20, 0x7E), (0x80, 0x7FF), (0x800, 0xD7FF), (0x1F300, 0x1FAFF))
    texts = ["", " ", "\n"]
    while len(texts) < count:
        if rng.random() < 0.75:
            texts.append("".join(rng.choices(pieces, k=rng.randint(1, 12))))
        else:
            spans = rng.choices(ranges, k=rng.randint(1, 20))
            texts.append("".join(chr(rng.randint(*span)) for span in spans))
    return texts


def encoder(files: TokenizerFiles | None) -> tokenizers.Tokenizer:
    assert files is not None
    return tokenizers.Tokenizer.from_str(files.tokenizer_json)


def auto_tokenizer(files: TokenizerFiles | None, directory: Path) -> Any:
    """What transformers makes of the files."""
    assert files is not None
    directory.mkdir()
    (directory / "tokenizer.json").write_text(files.tokenizer_json, encoding="utf-8")
    config = json.dumps(dict(files.tokenizer_config))
    (directory / "tokenizer_config.json").write_text(config, encoding="utf-8")
    return transformers.AutoTokenizer.from_pretrained(directory)


def test_demo_model_encodes_as_the_reference(demo_gguf: Path, tmp_path: Path) -> None:
    files = import_gguf(demo_gguf).tokenizer
    ours = encoder(files)
    auto = auto_tokenizer(files, tmp_path / "auto")
    reference = transformers.AutoTokenizer.from_pretrained(
        demo_gguf.parent, gguf_file=demo_gguf.name
    )
    # transformers takes the file's pre-tokenizer for GPT-2's.  SmolLM's splits digits first
    # (its published tokenizer.json; llama.cpp's "smollm" too), and so runs of other numerals.
    backend = reference.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer]
    )
    special = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<repo_name>", "<empty_output>"]
    for text in varied_texts(1000, 0, special):
        expected = reference.encode(text)
        assert ours.encode(text).ids == expected, text
        assert auto.encode(text) == expected, text
        assert auto.decode(expected) == reference.decode(expected), text


def test_demo_model_chat(demo_gguf: Path, tmp_path: Path) -> None:
    files = import_gguf(demo_gguf).tokenizer
    assert files is not None
    # 2 is <|im_end|>, the turn's end; 0 is <|endoftext|>, a document's.
    assert files.generation_config == {
        "bos_token_id": 1,
        "eos_token_id": [2, 0],
        "pad_token_id": 2,
    }
    auto = auto_tokenizer(files, tmp_path / "auto")
    text = auto.apply_chat_template(
        [{"role": "user", "content": "Hi 42"}], add_generation_prompt=True, tokenize=False
    )
    assert text.endswith("<|im_start|>user\nHi 42<|im_end|>\n<|im_start|>assistant\n")
    tokens = encoder(files).encode("<|im_start|>user\nHi 42<|im_end|>").tokens
    assert tokens == ["<|im_start|>", "user", "Ċ", "Hi", "Ġ", "4", "2", "<|im_end|>"]


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "qwen2", "tekken"])
def test_pre_tokenizers(tmp_path: Path, pre: str) -> None:
    path = tmp_path / "m.gguf"
    tiny.write_model(path, meta={"tokenizer.ggml.pre": pre, "tokenizer.ggml.add_bos_token": False})
    ours = encoder(import_gguf(path).tokenizer)
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    if pre == "qwen2":
        # transformers leaves out the normalizer of its own Qwen2 tokenizer here.
        reference.backend_tokenizer.normalizer = tokenizers.normalizers.NFC()
    splitter = tokenizers.Tokenizer.from_str(ours.to_str()).pre_tokenizer
    for text in varied_texts(300, 1, ["<tool>", "<|im_end|>"]):
        assert ours.encode(text).ids == reference.encode(text), text
        # The tiny vocabulary has few merges that cross a split; so compare the splits too.
        expected = reference.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
        assert splitter.pre_tokenize_str(text) == expected, text


def test_qwen2_tokenizer_of_transformers(tmp_path: Path) -> None:
    tiny.write_model(tmp_path / "m.gguf", "qwen2", meta={"tokenizer.ggml.pre": "qwen2"})
    ours = encoder(import_gguf(tmp_path / "m.gguf").tokenizer)
    reference = transformers.Qwen2Tokenizer(
        vocab={token: i for i, token in enumerate(tiny.TOKENS)},
        merges=[tuple(merge.split(" ")) for merge in tiny.MERGES],
        unk_token=None,
        eos_token="<|eos|>",
        pad_token="<|eos|>",
    )
    for text in varied_texts(300, 2):
        assert ours.encode(text).ids == reference.encode(text), text


def test_special_tokens_and_generation_config(tmp_path: Path) -> None:
    meta = {
        "tokenizer.ggml.unknown_token_id": 10,  # an ordinary token: no unknown token
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.eot_token_id": 2,
        "general.sampling.temp": 0.5,
        "general.sampling.top_k": 20,
    }
    tiny.write_model(tmp_path / "m.gguf", meta=meta)
    files = import_gguf(tmp_path / "m.gguf").tokenizer
    assert files is not None
    assert files.generation_config == {
        "bos_token_id": 0,
        "eos_token_id": [1, 2],
        "pad_token_id": 2,
        "temperature": 0.5,
        "top_k": 20,
    }
    assert files.tokenizer_config == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "bos_token": "<|bos|>",
        "eos_token": "<|eos|>",
        "pad_token": "<|im_end|>",
        "chat_template": "{{ messages[0]['content'] }}",
    }
    tokenizer = encoder(files)
    assert tokenizer.encode("<tool>the<|eos|>").tokens == ["<tool>", "the", "<|eos|>"]
    # A user-defined token is text; a control token is not.
    ids = tokenizer.encode("<tool>the<|eos|>").ids
    assert tokenizer.decode(ids) == "<tool>the"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<tool>the<|eos|>"


def test_one_end_is_an_int(tmp_path: Path) -> None:
    types = [3, 3, 1, 4] + [1] * (tiny.V - 4)  # <|im_end|> is ordinary text here
    tiny.write_model(tmp_path / "m.gguf", meta={"tokenizer.ggml.token_type": types})
    files = import_gguf(tmp_path / "m.gguf").tokenizer
    assert files is not None
    assert files.generation_config == {"bos_token_id": 0, "eos_token_id": 1}


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        ({}, ["the"]),
        ({"tokenizer.ggml.pre": "llama-bpe"}, ["<|bos|>", "the"]),
        ({"tokenizer.ggml.add_bos_token": True}, ["<|bos|>", "the"]),
        (
            {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True},
            ["<|bos|>", "the", "<|eos|>"],
        ),
        ({"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.add_bos_token": False}, ["the"]),
    ],
)
def test_bos_and_eos(tmp_path: Path, meta: dict[str, Any], expected: list[str]) -> None:
    tiny.write_model(tmp_path / "m.gguf", meta=meta)
    files = import_gguf(tmp_path / "m.gguf").tokenizer
    ours = encoder(files)
    auto = auto_tokenizer(files, tmp_path / "auto")
    assert ours.encode("the").tokens == expected
    assert auto.convert_ids_to_tokens(auto.encode("the")) == expected
    assert auto("the", "in")["input_ids"] == ours.encode("the", "in").ids
    assert ours.encode("the", add_special_tokens=False).tokens == ["the"]


def test_careless_padding_and_unknown_ids(tmp_path: Path) -> None:
    meta = {"tokenizer.ggml.padding_token_id": tiny.V, "tokenizer.ggml.unknown_token_id": 2**32 - 1}
    tiny.write_model(tmp_path / "m.gguf", meta=meta)
    files = import_gguf(tmp_path / "m.gguf").tokenizer
    assert files is not None
    assert not {"pad_token", "unk_token"} & files.tokenizer_config.keys()


def test_empty_tokens(tmp_path: Path) -> None:
    tokens = [*tiny.TOKENS[:-2], "", ""]
    merges = list(tiny.MERGES[:-2])
    meta = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": merges}
    tiny.write_model(tmp_path / "m.gguf", meta=meta)
    ours = encoder(import_gguf(tmp_path / "m.gguf").tokenizer)
    assert ours.get_vocab_size() == tiny.V
    assert ours.id_to_token(tiny.V - 1) == f"[EMPTY_{tiny.V - 1}]"


_TRAINING_TEXT = [
    "The quick brown fox jumps over the lazy dog, again and again.",
    "In the beginning the compiler turned the model into an artifact.",
    "def step(tokens):\n    return [token + 1 for token in tokens]",
    "Numbers such as 3.14, 2718 and 42 are not words; 'quotes' are.",
    "Ein Wörterbuch enthält Wörter, ein Tokenizer Stücke davon.",
    "日本語の文章も少しだけ入れておく。",
] * 20


def sentencepiece_model(add_dummy_prefix: bool) -> sentencepiece.SentencePieceProcessor:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_TRAINING_TEXT),
        model_writer=model,
        model_type="bpe",
        vocab_size=420,
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=add_dummy_prefix,
        split_digits=True,
        num_threads=1,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def gguf_keys(sp: sentencepiece.SentencePieceProcessor) -> dict[str, Any]:
    """What llama.cpp's converter writes for a SentencePiece model."""
    ids = range(sp.get_piece_size())

    def kind(i: int) -> int:
        if sp.is_unknown(i):
            return 2
        if sp.is_control(i):
            return 3
        return 6 if sp.is_byte(i) else 1

    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [sp.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": [sp.get_score(i) for i in ids],
        "tokenizer.ggml.token_type": [kind(i) for i in ids],
        "tokenizer.ggml.bos_token_id": sp.bos_id(),
        "tokenizer.ggml.eos_token_id": sp.eos_id(),
    }


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece(tmp_path: Path, prefix: bool) -> None:
    sp = sentencepiece_model(prefix)
    keys = gguf_keys(sp)
    if not prefix:
        keys["tokenizer.ggml.add_space_prefix"] = False
    weights = tiny.random_weights()
    weights["token_embd.weight"] = weights["token_embd.weight"].repeat(2, axis=0)[:420]
    meta = {"vocab_size": 420}
    tiny.write_model(tmp_path / "m.gguf", weights=weights, meta=meta, tokenizer=keys)
    files = import_gguf(tmp_path / "m.gguf").tokenizer
    assert files is not None
    ours = encoder(files)
    auto = auto_tokenizer(files, tmp_path / "auto")
    # sentencepiece takes "</s>" for text, a chat model's tokenizer does not: left out here.
    texts = [text for text in varied_texts(1000, 3) if "</s>" not in text]
    for text in texts + _TRAINING_TEXT[:6]:
        expected = sp.encode(text)
        assert ours.encode(text, add_special_tokens=False).ids == expected, text
        with_bos = ours.encode(text).ids
        assert with_bos == [sp.bos_id(), *expected], text
        assert auto.encode(text) == with_bos, text
        assert ours.decode(expected) == sp.decode(expected), text
    assert files.tokenizer_config["unk_token"] == "<unk>"
    assert ours.encode("a</s>").ids[-1] == sp.eos_id()
