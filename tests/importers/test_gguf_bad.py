"""Damaged, hostile and unsupported GGUF files: each error says what came and what was expected."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFValueType as T

from llmir.errors import CorruptModelError, ModelNotFoundError, UnsupportedModelError
from llmir.importers.gguf import import_gguf

from . import gguf_files as tiny
from .gguf_files import array_pair, pair, raw_gguf, string_pair, tensor_info, u32_pair

HUGE = 1 << 60
ARCH = string_pair("general.architecture", "llama")


def refused(path: Path, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)) as caught:
        import_gguf(path)
    assert type(caught.value) is error


def test_missing_file(tmp_path: Path) -> None:
    refused(tmp_path / "no.gguf", ModelNotFoundError, "should be a GGUF file, but is not there")


def test_directory(tmp_path: Path) -> None:
    refused(tmp_path, ModelNotFoundError, "should be a GGUF file, but is a directory")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "m.gguf should be a GGUF file, but is empty"),
        (b"PK\x03\x04" + bytes(100), "should begin with the magic b'GGUF', but begins with b'PK"),
        (b"XY", "should begin with the magic b'GGUF', but begins with b'XY'"),
        (b"GGUF\x03\0\0\0", "has 8 bytes, less than a GGUF header's 24; it is truncated"),
        (raw_gguf(num_tensors=HUGE), f"the number of tensors is {HUGE}, at least"),
        (raw_gguf(num_pairs=HUGE), f"the number of metadata pairs is {HUGE}, at least"),
        (
            raw_gguf([struct.pack("<Q", HUGE) + bytes(9)]),
            f"the key of metadata pair 0 needs {HUGE} bytes at offset 32, but the file has",
        ),
        (
            raw_gguf([tiny.text(b"\xff\xfe") + bytes(5)]),
            "the key of metadata pair 0 at offset 32 is not UTF-8",
        ),
        (
            raw_gguf([string_pair("a", b"\xc3(")]),
            "metadata 'a' at offset",
        ),
        (raw_gguf([pair("a", 13, bytes(8))]), "metadata 'a' has value type 13; GGUF has types"),
        (raw_gguf([pair("a", T.BOOL, b"\x02")]), "metadata 'a' is a bool with the value 2"),
        (raw_gguf([u32_pair("a", 1), u32_pair("a", 1)]), "the metadata key 'a' is there twice"),
        (raw_gguf([array_pair("a", T.STRING, HUGE)]), f"metadata 'a' is {HUGE}, at least"),
        (raw_gguf([array_pair("a", T.FLOAT64, HUGE)]), f"metadata 'a' is {HUGE}, at least"),
        (raw_gguf([array_pair("a", T.UINT8, (1 << 64) - 1)]), "metadata 'a' is 1844674407370955"),
        (raw_gguf([array_pair("a", 99, 1, bytes(8))]), "metadata 'a' has elements of value type"),
        (
            raw_gguf([u32_pair("general.alignment", 24)]),
            "general.alignment should be a power of two, but is 24",
        ),
        (
            raw_gguf([u32_pair("general.alignment", 0)]),
            "general.alignment should be a power of two, but is 0",
        ),
        (
            raw_gguf([string_pair("general.alignment", "32")]),
            "general.alignment should be an integer, but is '32'",
        ),
        (
            raw_gguf(tensors=[tensor_info("t", [1] * 5)]),
            "tensor 't' should have 1 to 4 dimensions, but has 5",
        ),
        (
            raw_gguf(tensors=[tiny.text("t") + struct.pack("<I", 1 << 31) + bytes(32)]),
            "tensor 't' should have 1 to 4 dimensions, but has 2147483648",
        ),
        (
            raw_gguf(tensors=[tensor_info("t", [1 << 32, 1 << 32])]),
            "tensor 't' has dimensions [4294967296, 4294967296] in f32",
        ),
        (raw_gguf(tensors=[tensor_info("t", [4, 0])]), "tensor 't' has dimensions [4, 0]; each"),
        (
            raw_gguf(tensors=[tensor_info("t", [33], ggml_type=8)]),
            "the first a multiple of q8_0's block size 32",
        ),
        (
            raw_gguf(tensors=[tensor_info("t", [8], offset=4)], data=bytes(64)),
            "tensor 't' has offset 4, which should be a multiple of the file's alignment 32",
        ),
        (
            raw_gguf(tensors=[tensor_info("t", [8], offset=1 << 63)], data=bytes(64)),
            "tensor 't' has dimensions [8] in f32, bytes",
        ),
        (
            raw_gguf(tensors=[tensor_info("t", [17])], data=bytes(64)),
            "the file has 128; it is truncated or damaged",
        ),
        (
            raw_gguf(tensors=[tensor_info("t", [8])] * 2, data=bytes(64)),
            "the tensor 't' is there twice",
        ),
        (raw_gguf(), "the metadata has no general.architecture (expected a string)"),
        (raw_gguf([ARCH]), "the metadata has no llama.block_count (expected an integer)"),
        (
            raw_gguf([ARCH, u32_pair("llama.block_count", 4_000_000_000)]),
            "llama.block_count should be between 1 and 2147483647, but is 4000000000",
        ),
        (
            raw_gguf([ARCH, u32_pair("llama.block_count", 2_000_000_000)]),
            "llama.block_count is 2000000000, but the file has 0 tensors in all",
        ),
    ],
)
def test_corrupt_container(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    refused(path, CorruptModelError, message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (raw_gguf(version=1), "m.gguf has GGUF version 1; llmir reads versions 2, 3"),
        (raw_gguf(version=4), "m.gguf has GGUF version 4; llmir reads versions 2, 3"),
        (raw_gguf(version=3 << 24), "m.gguf is a big-endian GGUF file; llmir reads little-endian"),
        (
            raw_gguf([array_pair("a", T.ARRAY, 1, bytes(12))]),
            "metadata 'a' is an array of arrays",
        ),
        (
            raw_gguf([string_pair("general.architecture", "mamba")]),
            "has the architecture 'mamba'; known architectures: llama, qwen2, qwen3",
        ),
        (
            raw_gguf(tensors=[tensor_info("t", [32], ggml_type=4)], data=bytes(64)),
            "m.gguf: tensor 't': GGUF tensor type 4",
        ),
    ],
)
def test_unsupported_container(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    refused(path, UnsupportedModelError, message)


def test_unknown_tensor_type_lists_the_known(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(raw_gguf(tensors=[tensor_info("t", [256], ggml_type=16)], data=bytes(256)))
    with pytest.raises(UnsupportedModelError, match=r"iq2_xxs.*supported types: f32 \(0\).*q6_k"):
        import_gguf(path)


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.9, 0.999])
def test_truncated_model(tmp_path: Path, cut: float) -> None:
    path = tmp_path / "m.gguf"
    tiny.write_model(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * cut)])
    refused(path, CorruptModelError, "it is truncated or damaged: download or convert it again")


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"block_count": 0}, "llama.block_count should be between 1 and 2147483647, but is 0"),
        ({"block_count": 3}, "the tensor blk.2.attn_norm.weight of shape [64] is missing"),
        ({"block_count": "2"}, "llama.block_count should be an integer, but is '2'"),
        ({"block_count": 2.0}, "llama.block_count should be an integer, but is float 2.0"),
        ({"context_length": None}, "the metadata has no llama.context_length"),
        ({"attention.layer_norm_rms_epsilon": None}, "the metadata has no llama.attention.layer_"),
        (
            {"attention.layer_norm_rms_epsilon": float("nan")},
            "layer_norm_rms_epsilon should be a finite number, but is float nan",
        ),
        ({"rope.freq_base": -1.0}, "expected rope.freq_base and layer_norm_rms_epsilon to be posi"),
        ({"attention.head_count_kv": 3}, "head_count 4 should be a multiple of head_count_kv 3"),
        ({"attention.head_count": 6}, "embedding_length 64 should be a multiple of"),
        ({"attention.head_count": [4, 4, 4]}, "should have a value for each of the 2 layers"),
        ({"attention.head_count": [0.5, 4.0]}, "should be an integer or an array of integers"),
        ({"attention.key_length": 17}, "rotary embedding needs an even head size, but it is 17"),
        (
            {"attention.key_length": 32, "rope.dimension_count": 32},
            "the tensor blk.0.attn_q.weight should have shape [128, 64], but has [64, 64]",
        ),
        (
            {"vocab_size": tiny.V + 1},
            f"token_embd.weight should have shape [{tiny.V + 1}, 64], but has [{tiny.V}, 64]",
        ),
        ({"vocab_size": True}, "llama.vocab_size should be an integer, but is bool True"),
        ({"rope.scaling.factor": -2.0}, "rope.scaling.factor should be positive, but is -2.0"),
    ],
)
def test_corrupt_metadata(tmp_path: Path, meta: dict[str, Any], message: str) -> None:
    tiny.write_model(tmp_path / "m.gguf", meta=meta)
    refused(tmp_path / "m.gguf", CorruptModelError, message)


@pytest.mark.parametrize(
    ("arch", "meta", "message"),
    [
        ("llama", {"expert_count": 8}, "llama.expert_count is int 8, which llmir does not support"),
        ("llama", {"logit_scale": 8.0}, "llama.logit_scale is float 8.0"),
        ("llama", {"residual_scale": 0.5}, "llama.residual_scale is float 0.5"),
        ("llama", {"embedding_scale": 12.0}, "llama.embedding_scale is float 12.0"),
        ("llama", {"attention.scale": 0.5}, "llama.attention.scale is 0.5; llmir supports only"),
        ("qwen2", {"final_logit_softcapping": 30.0}, "qwen2.final_logit_softcapping is float 30"),
        ("qwen2", {"attn_logit_softcapping": 50.0}, "qwen2.attn_logit_softcapping is float 50.0"),
        ("qwen3", {"attention.causal": False}, "qwen3.attention.causal is bool False"),
        ("qwen2", {"rope.dimension_sections": [8, 8, 8]}, "rope.dimension_sections is an array"),
        ("llama", {"rope.dimension_count": 8}, "rope.dimension_count is 8; llmir supports only"),
        ("llama", {"attention.value_length": 8}, "attention.value_length is 8; llmir supports"),
        (
            "llama",
            {"attention.head_count_kv": [2, 1]},
            "llama.attention.head_count_kv differs between layers",
        ),
        (
            "qwen2",
            {"attention.sliding_window": 64},
            "qwen2.attention.sliding_window is 64; qwen2 has such windows in some layers only",
        ),
        (
            "llama",
            {"rope.scaling.type": "longrope"},
            "llama.rope.scaling.type is 'longrope'; known types: linear, none, yarn",
        ),
        (
            "llama",
            {"rope.scaling.type": "yarn", "rope.scaling.yarn_ext_factor": 0.5},
            "yarn_ext_factor is 0.5; llmir supports 1",
        ),
        ("llama", {"rope.scaling.yarn_log_multiplier": 0.1}, "yarn_log_multiplier is float"),
    ],
)
def test_unsupported_metadata(
    tmp_path: Path, arch: str, meta: dict[str, Any], message: str
) -> None:
    tiny.write_model(tmp_path / "m.gguf", arch, meta=meta)
    refused(tmp_path / "m.gguf", UnsupportedModelError, message)


@pytest.mark.parametrize(
    ("arch", "name"), [("qwen2", "blk.1.attn_k.bias"), ("qwen3", "blk.0.attn_q_norm.weight")]
)
def test_missing_tensor(tmp_path: Path, arch: str, name: str) -> None:
    weights = tiny.random_weights(arch)
    shape = list(weights.pop(name).shape)
    tiny.write_model(tmp_path / "m.gguf", arch, weights=weights)
    message = f"the tensor {name} of shape {shape} is missing; the file is not a whole {arch} model"
    refused(tmp_path / "m.gguf", CorruptModelError, message)


def test_tensor_of_the_wrong_shape(tmp_path: Path) -> None:
    weights = tiny.random_weights()
    weights["blk.1.ffn_up.weight"] = weights["blk.1.ffn_up.weight"].T.copy()
    tiny.write_model(tmp_path / "m.gguf", weights=weights)
    message = "the tensor blk.1.ffn_up.weight should have shape [96, 64], but has [64, 96]"
    refused(tmp_path / "m.gguf", CorruptModelError, message)


@pytest.mark.parametrize("name", ["blk.0.attn_q_norm.weight", "blk.2.attn_q.weight", "altup"])
def test_tensor_that_does_not_belong(tmp_path: Path, name: str) -> None:
    weights = tiny.random_weights() | {name: np.ones(tiny.HD, np.float32)}
    tiny.write_model(tmp_path / "m.gguf", weights=weights)
    message = f"the tensor '{name}' is not one of a llama model of 2 layers"
    refused(tmp_path / "m.gguf", UnsupportedModelError, message)


@pytest.mark.parametrize(
    ("factors", "error", "message"),
    [
        (np.full(8, 3.0), UnsupportedModelError, "(largest element 3) is not Llama 3.1's rotary"),
        (np.ones(4), CorruptModelError, "rope_freqs.weight should be floats of shape [8], but is"),
        (np.full(8, np.inf), CorruptModelError, "rope_freqs.weight has elements that are not fin"),
    ],
)
def test_frequency_factors(
    tmp_path: Path, factors: np.ndarray, error: type[Exception], message: str
) -> None:
    weights = tiny.random_weights() | {"rope_freqs.weight": factors.astype(np.float32)}
    tiny.write_model(tmp_path / "m.gguf", weights=weights)
    refused(tmp_path / "m.gguf", error, message)


def split_model(directory: Path) -> list[Path]:
    tiny.write_model(directory / "m.gguf", split_max_tensors=7)
    return sorted(directory.glob("m-*.gguf"))


def test_missing_shard(tmp_path: Path) -> None:
    first, second, third = split_model(tmp_path)
    second.unlink()
    for path in (first, third):
        message = f"{path.name} is one of 3 shards, and m-00002-of-00003.gguf is not beside it"
        refused(path, ModelNotFoundError, message)


def test_shard_under_another_name(tmp_path: Path) -> None:
    first, second, third = split_model(tmp_path)
    message = "m-00001-of-00003.gguf: expected shard 1 of 3 by its name, but its metadata says shar"
    third.replace(first)
    first.with_name("x.gguf").write_bytes(first.read_bytes())
    refused(tmp_path / "x.gguf", CorruptModelError, "expected shard 1 of 1 by its name, but its")
    third.write_bytes(second.read_bytes())
    refused(second, CorruptModelError, message)


def test_shards_of_different_models(tmp_path: Path) -> None:
    shards = split_model(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    weights = dict(list(tiny.random_weights().items())[:15])
    tiny.write_model(other / "m.gguf", weights=weights, split_max_tensors=7)
    shards[2].write_bytes((other / shards[2].name).read_bytes())
    refused(shards[0], CorruptModelError, "split.tensors.count is 20, but the 3 shards hold 15")


def test_shard_number_beyond_the_count(tmp_path: Path) -> None:
    path = tmp_path / "m-00004-of-00003.gguf"
    path.write_bytes(raw_gguf())
    refused(path, CorruptModelError, "calls itself shard 4 of 3; expected 1 to 3")


TOKENS = tiny.TOKENS


@pytest.mark.parametrize(
    ("meta", "error", "message"),
    [
        (
            {"tokenizer.ggml.model": "bert"},
            UnsupportedModelError,
            "tokenizer.ggml.model is 'bert'; known tokenizers: gpt2, llama",
        ),
        (
            {"tokenizer.ggml.pre": "viking"},
            UnsupportedModelError,
            "tokenizer.ggml.pre is 'viking'; known pre-tokenizers: default, gpt-2, llama-bpe,",
        ),
        (
            {"tokenizer.ggml.tokens": [*TOKENS[:-1], "a"]},
            CorruptModelError,
            "tokenizer.ggml.tokens has 'a' twice, with the ids",
        ),
        (
            {"tokenizer.ggml.tokens": [*TOKENS, "more"]},
            CorruptModelError,
            f"has {tiny.V + 1} tokens, but the model's vocabulary has {tiny.V}",
        ),
        (
            {"tokenizer.ggml.tokens": "a"},
            CorruptModelError,
            "tokenizer.ggml.tokens should be an array of strings, but is 'a'",
        ),
        (
            {"tokenizer.ggml.token_type": [1, 1]},
            CorruptModelError,
            f"should have {tiny.V} integers, one for each token, but is an array of 2 numbers",
        ),
        ({"tokenizer.ggml.merges": None}, CorruptModelError, "has no tokenizer.ggml.merges"),
        (
            {"tokenizer.ggml.merges": ["t h", "q z"]},
            CorruptModelError,
            "tokenizer.ggml.merges has 'q z'; expected two tokens with a space between them",
        ),
        ({"tokenizer.ggml.merges": ["th"]}, CorruptModelError, "tokenizer.ggml.merges has 'th'"),
        (
            {"tokenizer.ggml.eos_token_id": 9999},
            CorruptModelError,
            f"tokenizer.ggml.eos_token_id is 9999, but the vocabulary has {tiny.V} tokens",
        ),
        (
            {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": None},
            CorruptModelError,
            "add_bos_token is true, but there is no tokenizer.ggml.bos_token_id",
        ),
        (
            {"tokenizer.ggml.model": "llama"},
            CorruptModelError,
            "has no tokenizer.ggml.scores",
        ),
        (
            {"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": [0.0, 1.0]},
            CorruptModelError,
            f"tokenizer.ggml.scores should have {tiny.V} finite numbers",
        ),
        (
            {"tokenizer.ggml.model": "llama", "tokenizer.ggml.remove_extra_whitespaces": True},
            UnsupportedModelError,
            "tokenizer.ggml.remove_extra_whitespaces is bool True, which llmir does not support",
        ),
    ],
)
def test_bad_tokenizer(
    tmp_path: Path, meta: dict[str, Any], error: type[Exception], message: str
) -> None:
    tiny.write_model(tmp_path / "m.gguf", meta=meta)
    refused(tmp_path / "m.gguf", error, message)
