"""config.json in every spelling, against transformers' own reading of it, and bad values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from llmir.config import ModelSpec, RopeScaling
from llmir.errors import CorruptModelError, LlmirError, UnsupportedModelError
from llmir.importers.huggingface_config import read_config
from llmir.importers.huggingface_json import Fields, parse_object
from llmir.models.rope import rope_table

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "vocab_size": 263,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}
MISTRAL = LLAMA | {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
QWEN2 = LLAMA | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
QWEN3 = LLAMA | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
LLAMA3_ROPE = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def read(config: dict[str, Any]) -> ModelSpec:
    return read_config(Fields(config, "config.json"), "tiny")


def without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


# Spellings that transformers 4 and 5 and the models' publishers have written.
SPELLINGS: dict[str, dict[str, Any]] = {
    "v5": LLAMA | {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    "v4": LLAMA | {"rope_theta": 500000.0, "rope_scaling": None},
    "nothing of rope": LLAMA,
    "v4 linear, type": LLAMA | {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "v4 linear, rope_type": LLAMA | {"rope_scaling": {"rope_type": "linear", "factor": 4}},
    "v4 llama3": LLAMA
    | {"rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3"} | LLAMA3_ROPE},
    "v5 llama3": LLAMA
    | {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0} | LLAMA3_ROPE},
    "yarn": LLAMA
    | {
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
        "rope_theta": 1000000,
    },
    "yarn, every field": LLAMA
    | {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 128,
            "beta_fast": 16,
            "beta_slow": 2,
            "mscale": 0.7,
            "mscale_all_dim": 1.1,
            "truncate": False,
        }
    },
    "yarn, attention factor": LLAMA
    | {
        "rope_scaling": {
            "type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 128,
            "attention_factor": 0.5,
        }
    },
    "yarn, context outside": LLAMA
    | {
        "rope_scaling": {"type": "yarn", "factor": 4.0},
        "original_max_position_embeddings": 128,
    },
    "yarn, no context": LLAMA | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
    "yarn, null factor": LLAMA
    | {
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": None,
            "original_max_position_embeddings": 128,
        }
    },
    "dynamic": LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "no kv heads": without(LLAMA, "num_key_value_heads"),
    "null kv heads": LLAMA | {"num_key_value_heads": None},
    "null head_dim": LLAMA | {"head_dim": None},
    "head_dim": LLAMA | {"head_dim": 32},
    "no context": without(LLAMA, "max_position_embeddings"),
    "no eps": without(LLAMA, "rms_norm_eps"),
    "tied": LLAMA | {"tie_word_embeddings": True},
    "biases": LLAMA | {"attention_bias": True, "mlp_bias": True},
    "no architectures": without(LLAMA, "architectures"),
    "null architectures": LLAMA | {"architectures": None},
    "mistral, no kv heads": without(MISTRAL, "num_key_value_heads") | {"num_attention_heads": 16},
    "mistral, no window named": MISTRAL,
    "mistral, null window": MISTRAL | {"sliding_window": None},
    "mistral, window": MISTRAL | {"sliding_window": 100},
    "mistral, no context": without(MISTRAL, "max_position_embeddings"),
    "qwen2": QWEN2 | {"sliding_window": 32, "use_sliding_window": False},
    "qwen2, null kv heads": QWEN2 | {"num_key_value_heads": None},
    "qwen2, windows": QWEN2
    | {"sliding_window": 32, "use_sliding_window": True, "max_window_layers": 2},
    "qwen2, default window": QWEN2 | {"use_sliding_window": True, "max_window_layers": 0},
    "qwen2, null window": QWEN2
    | {"use_sliding_window": True, "max_window_layers": 0, "sliding_window": None},
    "qwen2, layer_types": QWEN2
    | {
        "sliding_window": 32,
        "use_sliding_window": True,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "qwen3, no head_dim": QWEN3,
    "qwen3, bias": QWEN3 | {"head_dim": 32, "attention_bias": True},
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_reads_as_transformers_does(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SPELLINGS[name]))
    spec = read(SPELLINGS[name])
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    pairs = {
        "architecture": "model_type",
        "hidden_size": "hidden_size",
        "intermediate_size": "intermediate_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "num_kv_heads": "num_key_value_heads",
        "max_position_embeddings": "max_position_embeddings",
        "rms_norm_eps": "rms_norm_eps",
        "tie_word_embeddings": "tie_word_embeddings",
    }
    for ours, field in pairs.items():
        assert getattr(spec, ours) == getattr(theirs, field), field
    model = transformers.AutoModelForCausalLM.from_config(theirs)
    layer = model.model.layers[0]
    assert spec.head_dim == layer.self_attn.head_dim
    assert spec.qkv_bias == (layer.self_attn.v_proj.bias is not None)
    assert spec.output_bias == (layer.self_attn.o_proj.bias is not None)
    assert spec.mlp_bias == (layer.mlp.up_proj.bias is not None)
    assert spec.qk_norm == hasattr(layer.self_attn, "q_norm")
    if theirs.model_type == "mistral":
        windows = (theirs.sliding_window,) * 3
    else:
        windows = tuple(
            getattr(layer.self_attn, "sliding_window", None) for layer in model.model.layers
        )
    assert spec.sliding_windows == windows

    context = min(spec.max_position_embeddings, 512)
    rotary = LlamaRotaryEmbedding(theirs)
    cos, sin = rotary(torch.zeros(1), torch.arange(context)[None])
    half = spec.head_dim // 2
    expected = np.concatenate([cos[0, :, :half].numpy(), sin[0, :, :half].numpy()], axis=1)
    # 512 positions × one unit in the last place of a frequency below one is 3e-5.
    assert np.abs(rope_table(spec, context) - expected).max() <= 3e-5


@pytest.mark.parametrize(
    ("named", "expected"),
    [("silu", "silu"), ("swish", "silu"), ("gelu_pytorch_tanh", "gelu_pytorch_tanh")],
)
def test_activation(named: str, expected: str) -> None:
    assert read(LLAMA | {"hidden_act": named}).hidden_act == expected


def test_values_of_a_whole_spec() -> None:
    rope = {"rope_type": "llama3", "rope_theta": 500000.0} | LLAMA3_ROPE
    assert read(LLAMA | {"rope_parameters": rope}) == ModelSpec(
        architecture="llama",
        name="tiny",
        vocab_size=263,
        hidden_size=64,
        intermediate_size=96,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        rope_theta=500000.0,
        rope_scaling=RopeScaling(
            kind="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=64,
        ),
        sliding_windows=(None, None, None),
    )


UNSUPPORTED: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": (
        {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"},
        "architecture 'GPT2LMHeadModel' is not supported; known: LlamaForCausalLM, "
        "MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM",
    ),
    "model_type": (
        {"model_type": "gemma"},
        "model_type 'gemma' is not supported; known: llama, mistral, qwen2, qwen3",
    ),
    "classifier": (
        {"architectures": ["LlamaForSequenceClassification"]},
        "architecture 'LlamaForSequenceClassification' is not supported; known",
    ),
    "activation": (
        {"hidden_act": "gelu"},
        "hidden_act 'gelu' is not supported; known: silu, swish, gelu_pytorch_tanh",
    ),
    "quantised": (
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        "quantization_config (gptq) is not supported; use the unquantised checkpoint",
    ),
    "longrope": (
        {"rope_scaling": {"type": "longrope", "short_factor": [1], "long_factor": [1]}},
        "rope_scaling: RoPE scaling 'longrope' is not supported; "
        "known: default, dynamic, linear, llama3, yarn",
    ),
    "partial": (
        {"partial_rotary_factor": 0.5},
        "partial_rotary_factor 0.5 is not supported, only 1.0",
    ),
    "partial, v5": (
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}},
        "partial_rotary_factor 0.25 is not supported, only 1.0",
    ),
    "rope by layer type": (
        {"rope_parameters": {"full_attention": {}, "sliding_attention": {}}},
        "RoPE that differs between layer types (full_attention, sliding_attention)",
    ),
    "sliding llama": (
        {"layer_types": ["sliding_attention"] * 3},
        "layer_types other than full_attention in every layer are not supported for llama",
    ),
    "linear attention": (
        {"layer_types": ["full_attention", "linear_attention", "full_attention"]},
        "layer type 'linear_attention' is not supported; known: full_attention, sliding_attention",
    ),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_refuses_by_name(name: str) -> None:
    fields, message = UNSUPPORTED[name]
    base = LLAMA if "model_type" not in fields else without(LLAMA, "architectures")
    with pytest.raises(UnsupportedModelError) as caught:
        read(base | fields)
    assert str(caught.value).startswith("config.json: ")
    assert message in str(caught.value)


SIZE = "must be an integer from 1 to 2147483647, not"
CORRUPT: dict[str, tuple[dict[str, Any], str]] = {
    "negative": ({"hidden_size": -64}, f"hidden_size {SIZE} -64"),
    "zero": ({"vocab_size": 0}, f"vocab_size {SIZE} 0"),
    "huge": ({"intermediate_size": 2**40}, f"intermediate_size {SIZE} {2**40}"),
    "text": ({"num_attention_heads": "4"}, f"num_attention_heads {SIZE} '4'"),
    "float": ({"num_key_value_heads": 2.0}, f"num_key_value_heads {SIZE} 2.0"),
    "bool": ({"head_dim": True}, f"head_dim {SIZE} True"),
    "layers": ({"num_hidden_layers": 5000}, "must be an integer from 1 to 4096, not 5000"),
    "missing": ({"hidden_size": None}, "hidden_size is missing"),
    "heads": ({"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of num_key"),
    "hidden": ({"hidden_size": 65}, "hidden_size 65 is not a multiple of num_attention_heads 4"),
    "odd": ({"head_dim": 15}, "head_dim 15 is odd; RoPE turns pairs of dims"),
    "eps": ({"rms_norm_eps": "1e-5"}, "rms_norm_eps must be a finite number, not '1e-5'"),
    "negative eps": ({"rms_norm_eps": -1.0}, "rms_norm_eps must be at least 0, not -1.0"),
    "NaN": ({"rope_theta": float("nan")}, "rope_theta must be a finite number, not nan"),
    "huge theta": ({"rope_theta": 10**400}, "rope_theta must be a finite number, not 1000"),
    "theta": ({"rope_theta": 0.5}, "rope_theta must be greater than 1, not 0.5"),
    "flag": ({"attention_bias": 1}, "attention_bias must be true or false, not 1"),
    "model_type": ({"model_type": 3}, "model_type must be a string, not 3"),
    "architectures": ({"architectures": "Llama"}, "architectures must be a list of strings"),
    "contradiction": ({"model_type": "qwen2"}, "contradicts model_type 'qwen2'"),
    "rope": ({"rope_scaling": "linear"}, "rope_scaling must be an object, not 'linear'"),
    "no factor": ({"rope_scaling": {"type": "linear"}}, "rope_scaling: factor is missing"),
    "yarn without factor": ({"rope_scaling": {"type": "yarn"}}, "rope_scaling: factor is missing"),
    "zero factor": (
        {"rope_scaling": {"type": "linear", "factor": 0}},
        "rope_scaling: factor must be greater than 0, not 0",
    ),
    "llama3 factors": (
        {"rope_scaling": {"type": "llama3"} | LLAMA3_ROPE | {"high_freq_factor": 1.0}},
        "high_freq_factor 1.0 must be greater than low_freq_factor 1.0",
    ),
    "betas": (
        {"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": 1, "beta_slow": 2}},
        "beta_fast 1.0 must not be less than beta_slow 2.0",
    ),
    "layer_types": ({"layer_types": ["full_attention"]}, "has 1 entries, num_hidden_layers is 3"),
}


@pytest.mark.parametrize("name", CORRUPT)
def test_names_the_bad_field(name: str) -> None:
    fields, message = CORRUPT[name]
    with pytest.raises(CorruptModelError) as caught:
        read(LLAMA | fields)
    assert str(caught.value).startswith("config.json: ")
    assert message in str(caught.value)


def test_windows_that_contradict_each_other() -> None:
    sliding = ["sliding_attention"] * 3
    with pytest.raises(CorruptModelError, match="sliding_attention, but use_sliding_window is off"):
        read(QWEN2 | {"layer_types": sliding})
    with pytest.raises(CorruptModelError, match="max_window_layers must be an integer from 0"):
        read(QWEN2 | {"max_window_layers": -1})
    with pytest.raises(UnsupportedModelError, match="other than full_attention in every layer"):
        read(MISTRAL | {"sliding_window": None, "layer_types": sliding})
    assert read(MISTRAL | {"layer_types": sliding}).sliding_windows == (4096,) * 3


def test_nothing_that_names_a_model() -> None:
    with pytest.raises(CorruptModelError, match="neither architectures nor model_type is there"):
        read({"hidden_size": 64})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "expected a JSON object, found list at the top"),
        ("{", "is not valid JSON: "),
        ("[" * 100_000, "is not valid JSON: "),
        ('{"a": ' + "9" * 10_000 + "}", "is not valid JSON: "),
    ],
)
def test_files_that_are_not_objects(text: str, message: str) -> None:
    with pytest.raises(LlmirError, match=message):
        parse_object(Path("config.json"), text)
