"""Every architecture and RoPE variant against transformers, on tiny random-weight models.

All in float32: what differs is the order of sums.  Measured: 5e-6 to 2e-5 where logits
are of order one; the bound is 1e-4.

A comparison shows nothing if the thing under test could be left out unnoticed, so
whatever a kind is about (its window, its scaling) must also change the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import KINDS, VOCAB_SIZE

import llmir
from llmir.errors import UnsupportedModelError

from . import reference

BOUND = 1e-4
TELLS_APART = 0.05  # what leaving out a model's special part must at least do to a logit

# Longer than every window (8), and than the original contexts of llama3 (32) and YaRN (64).
TOKEN_IDS = np.random.default_rng(0).integers(0, VOCAB_SIZE, 200).tolist()

NO_WINDOW = {"sliding_window": None, "use_sliding_window": False}
NO_SCALING = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
# kind → its config without what it is about
WITHOUT: dict[str, dict[str, Any]] = {
    "llama-gelu": {"hidden_act": "silu"},
    "mistral-window": {"sliding_window": None},
    "qwen2-window": {"use_sliding_window": False, "layer_types": ["full_attention"] * 3},
    "rope-linear": NO_SCALING,
    "rope-llama3": NO_SCALING,
    "rope-yarn": NO_SCALING,
}

Make = Callable[..., Path]


def difference(
    checkpoint: Path, expected: np.ndarray, token_ids: list[int] = TOKEN_IDS, **options: Any
) -> float:
    """Largest difference between llmir's logits and `expected`."""
    llm = llmir.LLM(checkpoint, **reference.EXACT, **options)
    return float(np.abs(llm.logits(token_ids) - expected).max())


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_transformers(kind: str, tiny_checkpoint: Make) -> None:
    checkpoint = tiny_checkpoint(kind)
    expected = reference.logits(reference.from_checkpoint(checkpoint), TOKEN_IDS)
    assert difference(checkpoint, expected) <= BOUND
    if kind in WITHOUT:
        plain = reference.from_checkpoint(checkpoint, **WITHOUT[kind])
        assert np.abs(reference.logits(plain, TOKEN_IDS) - expected).max() > TELLS_APART


def test_a_long_sequence(tiny_checkpoint: Make) -> None:
    """Six steps, and positions where an angle's last place counts for 1e-4."""
    checkpoint = tiny_checkpoint("rope-yarn", max_position_embeddings=4096)
    token_ids = np.random.default_rng(1).integers(0, VOCAB_SIZE, 3000).tolist()
    expected = reference.logits(reference.from_checkpoint(checkpoint), token_ids)
    assert difference(checkpoint, expected, token_ids) <= BOUND


def test_sizes_that_no_vector_divides(tiny_checkpoint: Make) -> None:
    """Odd widths take other paths through every lowering."""
    sizes = {"hidden_size": 45, "intermediate_size": 77, "num_attention_heads": 3}
    checkpoint = tiny_checkpoint("qwen3", num_key_value_heads=1, head_dim=10, **sizes)
    expected = reference.logits(reference.from_checkpoint(checkpoint), TOKEN_IDS)
    assert difference(checkpoint, expected) <= BOUND


@pytest.mark.parametrize(("kind", "dtype"), [("llama-bias", "bfloat16"), ("qwen3", "float16")])
def test_half_precision_checkpoints(kind: str, dtype: str, tiny_checkpoint: Make) -> None:
    """The weights stay as they are; everything computed is float32, as in the reference."""
    checkpoint = tiny_checkpoint(kind, dtype=getattr(torch, dtype))
    artifact = llmir.compile(checkpoint, **reference.EXACT)
    stored = {t.stored_as for t in artifact.manifest.tensors if len(t.shape) == 2}
    assert stored == {{"bfloat16": "bf16", "float16": "f16"}[dtype]}
    expected = reference.logits(reference.from_checkpoint(checkpoint), TOKEN_IDS)
    assert difference(checkpoint, expected) <= BOUND


@pytest.mark.parametrize("page_size", [8, 32])
def test_page_sizes(page_size: int, tiny_checkpoint: Make) -> None:
    """On the kind that has both full attention and a window, hence two page tables."""
    checkpoint = tiny_checkpoint("qwen2-window")
    expected = reference.logits(reference.from_checkpoint(checkpoint), TOKEN_IDS)
    assert difference(checkpoint, expected, page_size=page_size) <= BOUND


def test_dynamic_ntk_within_the_original_context(tiny_checkpoint: Make) -> None:
    """There it changes nothing; beyond it transformers' numbers depend on the batch."""
    scaled, plain = (
        reference.logits(
            reference.from_checkpoint(tiny_checkpoint("rope-dynamic"), **config), TOKEN_IDS
        )
        for config in ({}, NO_SCALING)
    )
    np.testing.assert_array_equal(scaled, plain)
    assert difference(tiny_checkpoint("rope-dynamic"), scaled) <= BOUND


def test_dynamic_ntk_beyond_the_original_context_is_refused(tiny_checkpoint: Make) -> None:
    with pytest.raises(
        UnsupportedModelError,
        match="dynamic NTK RoPE scaling is served within the original context of 256 positions",
    ):
        llmir.compile(tiny_checkpoint("rope-dynamic"), max_model_len=257)
