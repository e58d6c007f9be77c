"""Rounded weights, a 16-bit KV cache, and GGUF files, against transformers with the same numbers.

Rounding changes a model; what is shown here is that llmir computes exactly the rounded
one.  So the reference has the rounded weights, or rounds keys and values where llmir
does, and the bounds stay those of float32.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from checkpoints import VOCAB_SIZE
from gguf import GGMLQuantizationType as Q
from importers import gguf_files as tiny_gguf
from transformers.models.llama.modeling_llama import eager_attention_forward

import llmir
from llmir import formats
from llmir.importers import import_model

from . import reference

BOUND = 1e-4
TOKEN_IDS = np.random.default_rng(0).integers(0, VOCAB_SIZE, 100).tolist()
Make = Callable[..., Path]


def exact(model: Path, **options: Any) -> llmir.LLM:
    return llmir.LLM(model, **reference.EXACT, **options)


def mean_kl(expected: np.ndarray, found: np.ndarray) -> float:
    """Mean over the rows of logits of KL(expected ‖ found), nats."""
    p, q = (torch.log_softmax(torch.from_numpy(x).double(), 1) for x in (expected, found))
    return float((p.exp() * (p - q)).sum(1).mean())


def largest(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max())


@pytest.mark.parametrize("mode", ["bf16", "q8_0", "q4_0", "int8", "int4-g32", "int4-g32-zp"])
def test_rounded_weights(mode: str, tiny_checkpoint: Make) -> None:
    checkpoint = tiny_checkpoint("llama-tied", num_hidden_layers=1)
    model = reference.from_checkpoint(checkpoint)
    unrounded = reference.logits(model, TOKEN_IDS)
    weights = import_model(checkpoint).weights
    rounded = {
        name: torch.from_numpy(formats.quantize(weight, mode).dequantize())
        for name, weight in weights.items()
        if len(weight.shape) == 2
    }
    model.load_state_dict(rounded, strict=False)
    expected = reference.logits(model, TOKEN_IDS)
    assert largest(expected, unrounded) > 100 * BOUND  # the rounding is there to be seen
    assert largest(exact(checkpoint, weights=mode).logits(TOKEN_IDS), expected) <= BOUND


def rounding_attention(dtype: torch.dtype) -> Any:
    """transformers' eager attention on keys and values rounded as the KV cache rounds them."""

    def forward(module: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        key, value = (x.to(dtype).float() for x in (key, value))
        return eager_attention_forward(module, query, key, value, *args, **kwargs)

    return forward


@pytest.mark.parametrize(("kv_dtype", "bound"), [("f16", 2e-3), ("bf16", 4e-2)])
def test_kv_cache_of_16_bits(kv_dtype: str, bound: float, tiny_checkpoint: Make) -> None:
    """Looser than elsewhere: rounding multiplies differences.

    Keys of the two models differ in the last place of a float32, so that now and then one
    is rounded the other way, by 2^-11 (bf16: 2^-8) of itself; from that layer on more of
    them are.  Measured: 5e-4 (1.1e-2) at most, and a 20th (7th) of what rounding does to
    the logits on average.
    """
    checkpoint = tiny_checkpoint("llama")
    model = reference.from_checkpoint(checkpoint)
    unrounded = reference.logits(model, TOKEN_IDS)
    dtype = {"f16": torch.float16, "bf16": torch.bfloat16}[kv_dtype]
    transformers.AttentionInterface.register("rounding", rounding_attention(dtype))
    transformers.AttentionMaskInterface.register("rounding", transformers.masking_utils.eager_mask)
    model.set_attn_implementation("rounding")
    expected = reference.logits(model, TOKEN_IDS)
    portable = {op: ["portable"] for op in ("append_kv", "paged_attention")}
    got = llmir.LLM(checkpoint, kv_dtype=kv_dtype, op_priority=portable).logits(TOKEN_IDS)
    assert largest(got, expected) <= bound
    assert np.abs(got - expected).mean() < np.abs(expected - unrounded).mean() / 4
    # The kernels round queries and weights to bf16 too.
    by_kernels = llmir.LLM(checkpoint, kv_dtype=kv_dtype).logits(TOKEN_IDS)
    assert mean_kl(expected, by_kernels) <= 1e-4


@pytest.mark.parametrize(("kv_dtype", "share"), [("int8", 0.02), ("fp8", 0.1)])
def test_kv_cache_of_8_bits(kv_dtype: str, share: float, tiny_checkpoint: Make) -> None:
    """Near the logits with float32 pages, by kernels and without; logits differ by `share`."""
    checkpoint = tiny_checkpoint("llama")
    expected = exact(checkpoint).logits(TOKEN_IDS)
    portable = {op: ["portable"] for op in ("append_kv", "paged_attention")}
    options = {"activations": "f32", "kv_dtype": kv_dtype}
    by_kernels = llmir.LLM(checkpoint, **options).logits(TOKEN_IDS)
    got = llmir.LLM(checkpoint, **options, op_priority=portable).logits(TOKEN_IDS)
    for found in (by_kernels, got):
        error = np.sqrt(np.mean((found - expected) ** 2))
        assert 0 < error < share * expected.std()
    # The two round the same numbers, but for those on an edge.
    assert np.abs(got - by_kernels).mean() < 0.1 * np.abs(got - expected).mean()


def tiny_weights(arch: str) -> dict[str, np.ndarray]:
    """Random weights under GGUF names that give logits of order one."""
    drawn = tiny_gguf.random_weights(arch, tied=arch != "qwen2", bias=False)
    return {
        name: np.float32(0.15) * w if w.ndim == 2 else 1 + np.float32(0.1) * w
        for name, w in drawn.items()
    }


CONFIGS = {
    "llama": transformers.LlamaConfig,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
}


def of_gguf(arch: str, weights: dict[str, np.ndarray]) -> Any:
    """transformers' model of a file that tiny_gguf.write_model wrote.

    `weights` are in transformers' own order of rows: it is the writer that permutes q and k.
    """
    sizes = tiny_gguf.DEFAULTS
    config = CONFIGS[arch](
        vocab_size=tiny_gguf.V,
        hidden_size=tiny_gguf.D,
        intermediate_size=tiny_gguf.F,
        num_hidden_layers=tiny_gguf.LAYERS,
        num_attention_heads=tiny_gguf.H,
        num_key_value_heads=tiny_gguf.KV,
        head_dim=tiny_gguf.HD,
        max_position_embeddings=tiny_gguf.CONTEXT,
        rms_norm_eps=sizes["attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": sizes["rope.freq_base"]},
        tie_word_embeddings="output.weight" not in weights,
    )
    return reference.from_weights(config, {reference.hf_name(n): w for n, w in weights.items()})


@pytest.mark.parametrize(
    ("arch", "quant"),
    [("llama", Q.F32), ("llama", Q.Q4_1), ("qwen2", Q.Q8_0), ("qwen3", Q.F16)],
    ids=lambda x: getattr(x, "name", x),
)
def test_gguf_files(arch: str, quant: Q, tmp_path: Path) -> None:
    weights = tiny_weights(arch)
    tiny_gguf.write_model(tmp_path / "m.gguf", arch, weights=weights, quant=quant)
    if quant != Q.F32:
        # Blocks run along rows, which the writer moves as a whole: rounding and
        # permuting can be swapped.
        weights = {
            name: tiny_gguf.gguf.quants.dequantize(tiny_gguf.gguf.quants.quantize(w, quant), quant)
            if w.ndim == 2
            else w
            for name, w in weights.items()
        }
    token_ids = [i % tiny_gguf.V for i in TOKEN_IDS]
    expected = reference.logits(of_gguf(arch, weights), token_ids)
    assert np.std(expected) > 0.3
    assert largest(exact(tmp_path / "m.gguf").logits(token_ids), expected) <= BOUND
    if quant == Q.Q4_1:
        widened = exact(tmp_path / "m.gguf", weights="f32")
        assert largest(widened.logits(token_ids), expected) <= BOUND
    # As compiled by default, activations and KV cache are rounded.
    assert mean_kl(expected, llmir.LLM(tmp_path / "m.gguf").logits(token_ids)) <= 1e-3
