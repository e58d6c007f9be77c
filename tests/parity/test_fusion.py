"""The option `fusion`: less of it is slower, and computes the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import llmir

from . import reference

KV_BYTES = 4 << 20
PROMPTS = [list(range(5, 60)), [7, 100, 9], list(range(200, 221))]
GREEDY = llmir.SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


def test_kernels_that_share_a_dispatch_give_the_same_bits(
    tiny_checkpoint: Callable[..., Path],
) -> None:
    """Alone and in a batch; qwen2's matmuls have biases.  (test_batching: any number of workers.)"""
    checkpoint = tiny_checkpoint("qwen2")
    alone, chained = (
        llmir.compile(checkpoint, "cpu", weights="q8_0", fusion=fusion) for fusion in ("ops", "all")
    )
    expected, found = (llmir.LLM(a, kv_cache_memory_bytes=KV_BYTES) for a in (alone, chained))
    for prompt in PROMPTS:
        assert found.logits(prompt).tobytes() == expected.logits(prompt).tobytes()
    answers = [
        [o.outputs[0].token_ids for o in llm.generate(PROMPTS, GREEDY)] for llm in (expected, found)
    ]
    assert answers[0] == answers[1]


def test_a_chain_without_matmuls(tiny_checkpoint: Callable[..., Path]) -> None:
    """Attention's kernels share a dispatch also where IREE's code computes all weights."""
    portable = {"linear": ["portable"], "embedding": ["portable"]}
    checkpoint = tiny_checkpoint("llama")
    found, expected = (
        llmir.LLM(
            llmir.compile(checkpoint, "cpu", fusion=fusion, op_priority=portable),
            kv_cache_memory_bytes=KV_BYTES,
        ).logits(PROMPTS[0])
        for fusion in ("all", "ops")
    )
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_without_fusion_results_differ_by_rounding(
    kind: str, tiny_checkpoint: Callable[..., Path]
) -> None:
    checkpoint = tiny_checkpoint(kind)
    fused, plain = (
        llmir.compile(checkpoint, "cpu", fusion=fusion, **reference.EXACT)
        for fusion in ("all", "none")
    )
    ops = [{p.op for p in a.manifest.modules[0].providers} for a in (fused, plain)]
    assert "rope_append" in ops[0] - ops[1]
    assert {"rope", "append_kv", "silu_mul", "add"} <= ops[1] - ops[0]
    found, expected = (
        llmir.LLM(a, kv_cache_memory_bytes=KV_BYTES).logits(PROMPTS[0]) for a in (fused, plain)
    )
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
