"""Which tokenizer files are read, how they merge, and which eos and bos ids win."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import tokenizers

from llmir.errors import CorruptModelError, UnsupportedModelError
from llmir.importers.base import TokenizerFiles
from llmir.importers.huggingface_json import Fields
from llmir.importers.huggingface_tokenizer import read_tokenizer

CONFIG: dict[str, Any] = {"model_type": "llama", "bos_token_id": 0, "eos_token_id": 1}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    checkpoints.write_tokenizer(tmp_path)
    return tmp_path


def put(path: Path, value: Any) -> None:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def read(directory: Path, config: dict[str, Any] = CONFIG) -> TokenizerFiles:
    tokenizer, _ = read_tokenizer(directory, Fields(config, "config.json"))
    assert tokenizer is not None
    return tokenizer


def test_files_are_carried(directory: Path) -> None:
    tokenizer = read(directory)
    assert tokenizer.tokenizer_json == (directory / "tokenizer.json").read_text()
    assert tokenizer.tokenizer_config["chat_template"] == checkpoints.CHAT_TEMPLATE
    assert tokenizer.tokenizer_config["eos_token"] == checkpoints.EOS
    loaded = tokenizers.Tokenizer.from_str(tokenizer.tokenizer_json)
    assert loaded.decode(loaded.encode("the thin é").ids) == "the thin é"


def test_a_template_file_wins_and_is_listed(directory: Path) -> None:
    put(directory / "chat_template.jinja", "{{ messages }}é")
    tokenizer, files = read_tokenizer(directory, Fields(CONFIG, "config.json"))
    assert tokenizer is not None
    assert tokenizer.tokenizer_config["chat_template"] == "{{ messages }}é"
    assert [file.name for file in files] == [
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ]


def test_old_special_tokens_are_merged(directory: Path) -> None:
    special = {
        "eos_token": {"content": "<|pad|>", "lstrip": False, "special": True},
        "unk_token": "<|bos|>",
        "additional_special_tokens": [{"content": "<|eos|>"}, "<|bos|>"],
    }
    put(directory / "special_tokens_map.json", special)
    merged = read(directory).tokenizer_config
    assert merged["eos_token"] == "<|pad|>"
    assert merged["unk_token"] == "<|bos|>"
    assert merged["bos_token"] == "<|bos|>"
    assert merged["additional_special_tokens"] == ["<|eos|>", "<|bos|>"]

    config = json.loads((directory / "tokenizer_config.json").read_text())
    put(directory / "tokenizer_config.json", config | {"added_tokens_decoder": {}})
    assert read(directory).tokenizer_config["eos_token"] == "<|eos|>"


def test_eos_lists_and_sampling_of_generation_config(directory: Path) -> None:
    generation = {"eos_token_id": [1, 2], "temperature": 0.6, "top_p": 0.9}
    put(directory / "generation_config.json", generation)
    assert read(directory).generation_config == generation | {"bos_token_id": 0}


def test_special_ids_fall_back(directory: Path) -> None:
    def ids(config: dict[str, Any]) -> dict[str, Any]:
        return dict(read(directory, config).generation_config)

    assert ids(CONFIG) == {"bos_token_id": 0, "eos_token_id": 1}
    assert ids(CONFIG | {"eos_token_id": [1, 2]})["eos_token_id"] == [1, 2]
    assert ids({"model_type": "llama"}) == {"bos_token_id": 1, "eos_token_id": 2}
    assert ids({"model_type": "qwen2"}) == {}
    assert ids(CONFIG | {"bos_token_id": None}) == {"eos_token_id": 1}


def test_no_tokenizer_at_all(tmp_path: Path) -> None:
    assert read_tokenizer(tmp_path, Fields(CONFIG, "config.json")) == (None, ())


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.json", "tokenizer_config.json"])
def test_a_tokenizer_of_another_kind(name: str, tmp_path: Path) -> None:
    put(tmp_path / name, {})
    with pytest.raises(UnsupportedModelError) as caught:
        read_tokenizer(tmp_path, Fields(CONFIG, "config.json"))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}: has {name} but no tokenizer.json")
    assert "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)" in message


def test_bad_files(directory: Path) -> None:
    path = directory / "generation_config.json"
    for eos in (-1, "2", [1, True], {"a": 1}):
        put(path, {"eos_token_id": eos})
        with pytest.raises(CorruptModelError) as caught:
            read(directory)
        assert f"{path}: eos_token_id must be a token id or a list" in str(caught.value)
    path.unlink()
    with pytest.raises(CorruptModelError, match=r"^config\.json: bos_token_id must be a token id"):
        read(directory, CONFIG | {"bos_token_id": "<s>"})

    put(directory / "tokenizer_config.json", "[]")
    with pytest.raises(CorruptModelError, match=r"tokenizer_config\.json: expected a JSON object"):
        read(directory)
    (directory / "tokenizer.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(CorruptModelError, match=r"tokenizer\.json: is not UTF-8 text"):
        read(directory)
    put(directory / "tokenizer.json", "{")
    with pytest.raises(CorruptModelError, match=r"tokenizer\.json: is not valid JSON"):
        read(directory)
