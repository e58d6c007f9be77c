"""Whole GGUF models: what the spec and the weights of a valid file are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Q

from llmir.config import RopeScaling
from llmir.importers.gguf import import_gguf
from llmir.importers.gguf_rope import llama3_freq_factors

from . import gguf_files as tiny

CANONICAL = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


def canonical(name: str) -> str:
    if name in OUTER:
        return OUTER[name]
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{CANONICAL[part]}.{kind}"


def as_stored(weight: np.ndarray, quant: Q) -> np.ndarray:
    """The values that are left of a weight in a format, by the gguf package."""
    if weight.ndim == 1 or quant == Q.F32:
        return weight
    return gguf.quants.dequantize(gguf.quants.quantize(weight, quant), quant)


@pytest.mark.parametrize("quant", [Q.F32, Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1])
@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
def test_every_weight(tmp_path: Path, arch: str, quant: Q) -> None:
    weights = tiny.random_weights(arch, tied=False)
    tiny.write_model(tmp_path / "m.gguf", arch, weights=weights, quant=quant)
    model = import_gguf(tmp_path / "m.gguf")
    assert set(model.weights) == {canonical(name) for name in weights}
    for name, weight in weights.items():
        found = model.weights[canonical(name)]
        assert found.name == canonical(name)
        assert found.shape == weight.shape
        assert found.format.name == ("f32" if weight.ndim == 1 else quant.name.lower())
        np.testing.assert_array_equal(found.dequantize(), as_stored(weight, quant), name)


def test_biases_of_a_llama_are_put_in_half_rotated_order(tmp_path: Path) -> None:
    weights = tiny.random_weights(bias=True)
    tiny.write_model(tmp_path / "m.gguf", weights=weights)
    model = import_gguf(tmp_path / "m.gguf")
    assert (model.spec.qkv_bias, model.spec.output_bias, model.spec.mlp_bias) == (True, True, True)
    for name, weight in weights.items():
        np.testing.assert_array_equal(model.weights[canonical(name)].dequantize(), weight, name)


def test_weights_are_views_of_the_file(tmp_path: Path) -> None:
    tiny.write_model(tmp_path / "m.gguf")
    raw = import_gguf(tmp_path / "m.gguf").weights["model.layers.0.mlp.up_proj.weight"].raw
    assert not raw.flags.owndata
    assert not raw.flags.writeable


@pytest.mark.parametrize(
    ("arch", "qkv_bias", "qk_norm"),
    [("llama", False, False), ("qwen2", True, False), ("qwen3", False, True)],
)
def test_spec(tmp_path: Path, arch: str, qkv_bias: bool, qk_norm: bool) -> None:
    tiny.write_model(tmp_path / "m.gguf", arch)
    model = import_gguf(tmp_path / "m.gguf")
    spec = model.spec
    assert (spec.architecture, spec.name, model.source) == (arch, "m", "m.gguf")
    assert (spec.vocab_size, spec.hidden_size, spec.intermediate_size) == (tiny.V, tiny.D, tiny.F)
    assert (spec.num_layers, spec.num_heads, spec.num_kv_heads) == (tiny.LAYERS, tiny.H, tiny.KV)
    assert (spec.head_dim, spec.max_position_embeddings) == (tiny.HD, tiny.CONTEXT)
    assert spec.rms_norm_eps == pytest.approx(1e-5)
    assert spec.rope_theta == 10000.0
    assert spec.rope_scaling == RopeScaling()
    assert spec.sliding_windows == (None,) * tiny.LAYERS
    assert spec.tie_word_embeddings
    assert (spec.qkv_bias, spec.qk_norm) == (qkv_bias, qk_norm)
    assert model.files == (str(tmp_path / "m.gguf"),)


def test_optional_keys(tmp_path: Path) -> None:
    meta = {
        "general.name": "Tiny",
        "attention.head_count": [tiny.H] * tiny.LAYERS,
        "attention.head_count_kv": [tiny.KV] * tiny.LAYERS,
        "attention.key_length": tiny.HD,
        "attention.value_length": tiny.HD,
        "attention.sliding_window": 64,
        "attention.scale": 0.25,
        "rope.dimension_count": None,
        "rope.freq_base": None,
        "vocab_size": None,
        "expert_count": 0,
        "logit_scale": 1.0,
    }
    tiny.write_model(tmp_path / "m.gguf", meta=meta)
    spec = import_gguf(tmp_path / "m.gguf").spec
    assert (spec.name, spec.architecture) == ("Tiny", "mistral")
    assert spec.sliding_windows == (64,) * tiny.LAYERS
    assert (spec.num_heads, spec.num_kv_heads, spec.head_dim) == (tiny.H, tiny.KV, tiny.HD)
    assert (spec.rope_theta, spec.vocab_size) == (10000.0, tiny.V)


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_window_of_the_whole_context_is_none(tmp_path: Path, arch: str) -> None:
    meta = {"attention.sliding_window": tiny.CONTEXT}
    tiny.write_model(tmp_path / "m.gguf", arch, meta=meta)
    assert import_gguf(tmp_path / "m.gguf").spec.sliding_windows == (None,) * tiny.LAYERS


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, RopeScaling()),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 1.0}, RopeScaling()),
        (
            {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
            RopeScaling(kind="linear", factor=4.0),
        ),
        ({"rope.scale_linear": 2.0}, RopeScaling(kind="linear", factor=2.0)),
        (
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 64,
            },
            RopeScaling(kind="yarn", factor=4.0, original_max_position_embeddings=64),
        ),
        (
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.attn_factor": 0.5,
                "rope.scaling.yarn_beta_fast": 16.0,
                "rope.scaling.yarn_beta_slow": 2.0,
                "rope.scaling.yarn_ext_factor": 1.0,
            },
            RopeScaling(
                kind="yarn",
                factor=4.0,
                original_max_position_embeddings=tiny.CONTEXT,
                attention_factor=0.5 * (0.1 * np.log(4.0) + 1.0),
                beta_fast=16.0,
                beta_slow=2.0,
            ),
        ),
    ],
)
def test_rope_scaling(tmp_path: Path, meta: dict, expected: RopeScaling) -> None:
    tiny.write_model(tmp_path / "m.gguf", meta=meta)
    assert import_gguf(tmp_path / "m.gguf").spec.rope_scaling == expected


@pytest.mark.parametrize("factor", [8.0, 32.0, 16.0])
def test_llama3_parameters_are_found_in_the_factors(tmp_path: Path, factor: float) -> None:
    scaling = RopeScaling(kind="llama3", factor=factor, original_max_position_embeddings=8192)
    weights = tiny.random_weights()
    weights["rope_freqs.weight"] = llama3_freq_factors(scaling, tiny.HD, 500000.0)
    tiny.write_model(tmp_path / "m.gguf", weights=weights, meta={"rope.freq_base": 500000.0})
    assert import_gguf(tmp_path / "m.gguf").spec.rope_scaling == scaling


def test_llama3_factors_are_those_of_transformers() -> None:
    rope_utils = pytest.importorskip("transformers.modeling_rope_utils")
    transformers = pytest.importorskip("transformers")
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = transformers.LlamaConfig(
        hidden_size=128, num_attention_heads=2, rope_parameters=rope, max_position_embeddings=131072
    )
    scaled, _ = rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 500000.0 ** -(np.arange(0, 64, 2) / 64)
    scaling = RopeScaling(kind="llama3", factor=32.0, original_max_position_embeddings=8192)
    factors = llama3_freq_factors(scaling, 64, 500000.0)
    np.testing.assert_allclose(plain / scaled.numpy(), factors, rtol=1e-5)


def test_factors_of_one_are_no_scaling(tmp_path: Path) -> None:
    weights = tiny.random_weights()
    weights["rope_freqs.weight"] = np.ones(tiny.HD // 2, np.float32)
    tiny.write_model(tmp_path / "m.gguf", weights=weights)
    assert import_gguf(tmp_path / "m.gguf").spec.rope_scaling == RopeScaling()


@pytest.mark.parametrize("shard", [1, 2, 3])
def test_any_shard_stands_for_the_model(tmp_path: Path, shard: int) -> None:
    weights = tiny.random_weights()
    per_shard = -(-len(weights) // 3)
    tiny.write_model(tmp_path / "m.gguf", weights=weights, split_max_tensors=per_shard)
    shards = sorted(tmp_path.glob("m-*.gguf"))
    assert len(shards) == 3
    model = import_gguf(shards[shard - 1])
    assert model.files == tuple(map(str, shards))
    assert model.spec.name == "m"
    for name, weight in weights.items():
        np.testing.assert_array_equal(model.weights[canonical(name)].dequantize(), weight, name)


def test_without_a_tokenizer(tmp_path: Path) -> None:
    tiny.write_model(tmp_path / "m.gguf", tokenizer={})
    assert import_gguf(tmp_path / "m.gguf").tokenizer is None


def test_version_2(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    tiny.write_model(path)
    data = bytearray(path.read_bytes())
    data[4] = 2
    path.write_bytes(data)
    assert len(import_gguf(path).weights) == 2 + 9 * tiny.LAYERS


@pytest.mark.parametrize("alignment", [8, 256])
def test_another_alignment(tmp_path: Path, alignment: int) -> None:
    weights = tiny.random_weights()
    tiny.write_model(tmp_path / "m.gguf", weights=weights, alignment=alignment)
    model = import_gguf(tmp_path / "m.gguf")
    for name, weight in weights.items():
        np.testing.assert_array_equal(model.weights[canonical(name)].dequantize(), weight, name)


def test_importing_needs_no_torch() -> None:
    code = "import sys, llmir.importers.gguf; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_demo_model(demo_gguf: Path) -> None:
    model = import_gguf(demo_gguf)
    spec = model.spec
    assert (spec.architecture, spec.num_layers, spec.hidden_size) == ("llama", 30, 576)
    assert (spec.num_heads, spec.num_kv_heads, spec.head_dim) == (9, 3, 64)
    assert (spec.vocab_size, spec.max_position_embeddings) == (49152, 8192)
    assert (spec.rope_theta, spec.tie_word_embeddings) == (100000.0, True)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(demo_gguf).tensors}
    assert set(model.weights) == {canonical(name) for name in tensors}
    for name, tensor in tensors.items():
        found = model.weights[canonical(name)]
        assert found.format.name == tensor.tensor_type.name.lower()
        assert list(found.shape) == tensor.shape[::-1].tolist()
        heads = {"attn_q": 9, "attn_k": 3}.get(name.split(".")[-2])
        expected = in_pairs(tensor.data, heads)
        # Every byte of every tensor; what the bytes mean, of the first layer and the last: it
        # takes half a minute of all.
        raw = found.raw.reshape(-1).view(np.uint8)
        np.testing.assert_array_equal(raw, expected.reshape(-1).view(np.uint8), name)
        if name.startswith(("blk.0.", "blk.29.")):
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            np.testing.assert_array_equal(found.dequantize(), in_pairs(values, heads), name)


def in_pairs(rows: np.ndarray, heads: int | None) -> np.ndarray:
    """Rows of q or k, where dims 2i and 2i + 1 of a head are turned together, in halves."""
    if not heads:
        return rows
    pairs = rows.reshape(heads, -1, 2, rows.shape[1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)
