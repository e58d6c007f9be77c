"""rope_table against the rotary embedding modules of transformers, and against the papers."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from llmir.config import ModelSpec, RopeScaling
from llmir.errors import CorruptModelError, UnsupportedModelError
from llmir.models.rope import rope_attention_factor, rope_inv_freq, rope_table

POSITIONS = 8192


def spec_of(
    head_dim: int = 64, theta: float = 10000.0, max_len: int = POSITIONS, **scaling: Any
) -> ModelSpec:
    return ModelSpec(
        architecture="llama",
        name="tiny",
        vocab_size=8,
        hidden_size=4 * head_dim,
        intermediate_size=8,
        num_layers=1,
        num_heads=4,
        num_kv_heads=4,
        head_dim=head_dim,
        max_position_embeddings=max_len,
        rms_norm_eps=1e-5,
        rope_theta=theta,
        rope_scaling=RopeScaling(**scaling),
    )


def reference(spec: ModelSpec) -> tuple[np.ndarray, np.ndarray]:
    """inv_freq [F] and the table [POSITIONS, head_dim] that transformers computes."""
    fields = {k: v for k, v in dataclasses.asdict(spec.rope_scaling).items() if v is not None}
    kind = fields.pop("kind")
    wanted = {
        "none": (),
        "linear": ("factor",),
        "dynamic": ("factor",),
        "llama3": (
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        ),
        "yarn": tuple(k for k in fields if "freq_factor" not in k),
    }[kind]
    config = LlamaConfig(
        hidden_size=spec.hidden_size,
        num_attention_heads=spec.num_heads,
        head_dim=spec.head_dim,
        max_position_embeddings=spec.max_position_embeddings,
        rope_parameters={
            "rope_type": "default" if kind == "none" else kind,
            "rope_theta": spec.rope_theta,
            **{k: fields[k] for k in wanted},
        },
    )
    module = LlamaRotaryEmbedding(config)
    cos, sin = module(torch.zeros(1), torch.arange(POSITIONS)[None])
    half = spec.head_dim // 2
    table = np.concatenate([cos[0, :, :half].numpy(), sin[0, :, :half].numpy()], axis=1)
    return module.inv_freq.numpy(), table


LLAMA3: dict[str, Any] = {
    "kind": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN: dict[str, Any] = {
    "kind": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 2048,
}

CASES = {
    "plain": spec_of(),
    "llama2": spec_of(128),
    "smollm2": spec_of(64, 100000.0),
    "qwen": spec_of(128, 1000000.0),
    "tiny head": spec_of(16, 500000.0),
    "linear": spec_of(128, kind="linear", factor=4.0),
    "linear, odd factor": spec_of(64, kind="linear", factor=2.7),
    "llama 3.1": spec_of(128, 500000.0, 131072, **LLAMA3),
    "llama 3.2": spec_of(64, 500000.0, 131072, **(LLAMA3 | {"factor": 32.0})),
    "yarn": spec_of(128, **YARN),
    "yarn, qwen": spec_of(
        128, 1000000.0, 131072, **(YARN | {"original_max_position_embeddings": 32768})
    ),
    "yarn, untruncated": spec_of(64, 150000.0, **YARN, truncate=False),
    "yarn, betas": spec_of(64, **YARN, beta_fast=16.0, beta_slow=2.0),
    "yarn, attention factor": spec_of(64, **YARN, attention_factor=0.75),
    "yarn, mscale": spec_of(64, **YARN, mscale=0.707, mscale_all_dim=1.3),
    "yarn, one mscale is ignored": spec_of(64, **YARN, mscale=0.707),
    "dynamic": spec_of(64, kind="dynamic", factor=2.0),
}


def scalar_rpow(exponents: torch.Tensor, base: float) -> torch.Tensor:
    """base ** exponents, one number at a time.

    torch's vectorised float32 power (AVX2, AVX-512) is one place off for about one
    frequency in a hundred, and which ones depends on the machine; its scalar path rounds
    correctly everywhere.  llmir takes the correctly rounded number.
    """
    return torch.stack([torch.pow(base, exponent) for exponent in exponents])


@pytest.mark.parametrize("name", CASES)
def test_table_equals_transformers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = CASES[name]
    monkeypatch.setattr(torch.Tensor, "__rpow__", scalar_rpow)
    inv_freq, expected = reference(spec)
    np.testing.assert_array_equal(rope_inv_freq(spec), inv_freq)
    table = rope_table(spec, POSITIONS)
    assert table.dtype == np.float32
    assert table.shape == (POSITIONS, spec.head_dim)
    # Measured 1.2e-7, YaRN's factor included: the last place of numbers about one.
    assert np.abs(table - expected).max() <= 2e-7


@pytest.mark.parametrize("name", CASES)
def test_vectorised_transformers_is_at_most_one_place_away(name: str) -> None:
    spec = CASES[name]
    inv_freq, expected = reference(spec)
    ours = rope_inv_freq(spec)
    np.testing.assert_array_almost_equal_nulp(ours, inv_freq, nulp=1)
    same = np.tile(ours == inv_freq, 2)
    assert same.mean() >= 0.9
    table = rope_table(spec, POSITIONS)
    assert np.abs(table - expected)[:, same].max() <= 2e-7


def test_cos_and_sin_are_those_of_the_float32_angle() -> None:
    spec = CASES["plain"]
    half = spec.head_dim // 2
    angle = (np.float32(8191) * rope_inv_freq(spec)).astype(np.float64)
    row = rope_table(spec, POSITIONS)[8191]
    np.testing.assert_array_equal(row[:half], np.cos(angle).astype(np.float32))
    np.testing.assert_array_equal(row[half:], np.sin(angle).astype(np.float32))


def test_long_tables_are_built_in_pieces_that_join() -> None:
    spec = spec_of(16, max_len=20000)
    table = rope_table(spec, 20000)
    np.testing.assert_array_equal(table[:100], rope_table(spec, 100))
    angle = np.float32(19999) * rope_inv_freq(spec)
    np.testing.assert_array_equal(table[19999, :8], np.cos(angle.astype(np.float64)).astype("f4"))


def test_position_zero_and_no_positions() -> None:
    table = rope_table(spec_of(4), 1)
    np.testing.assert_array_equal(table, [[1, 1, 0, 0]])
    assert rope_table(spec_of(4), 0).shape == (0, 4)


def test_linear_scaling_divides_the_position() -> None:
    stretched = rope_table(spec_of(64, kind="linear", factor=4.0), 400)
    np.testing.assert_array_equal(stretched[::4], rope_table(spec_of(64), 100))


def test_yarn_attention_factor_of_the_paper() -> None:
    factor = rope_attention_factor(RopeScaling(kind="yarn", factor=16.0))
    assert factor == pytest.approx(0.1 * math.log(16.0) + 1.0)
    assert rope_attention_factor(RopeScaling(kind="yarn", factor=0.5)) == 1.0


def test_dynamic_is_plain_within_its_context_and_refused_beyond() -> None:
    spec = spec_of(64, max_len=128, kind="dynamic", factor=2.0)
    np.testing.assert_array_equal(rope_table(spec, 128), rope_table(spec_of(64), 128))
    message = "dynamic NTK .* context of 128 positions only, and 129 were asked for"
    with pytest.raises(UnsupportedModelError, match=message):
        rope_table(spec, 129)


@pytest.mark.parametrize("head_dim", [0, 7])
def test_odd_head_dim_is_refused(head_dim: int) -> None:
    spec = dataclasses.replace(spec_of(8), head_dim=head_dim)
    with pytest.raises(CorruptModelError, match=f"must be even and positive, not {head_dim}"):
        rope_table(spec, 4)
