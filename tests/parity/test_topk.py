"""step_topk: the largest of the very logits that step gives, and the same text by the same seed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmir
from llmir.engine import LLM
from llmir.engine.from_artifact import open_artifact
from llmir.runtime.base import StepBatch, TopLogits
from llmir.runtime.session import Session

KV_BYTES = 4 << 20
PROMPTS = [list(range(5, 60)), [7, 100, 9], list(range(200, 221))]
PARAMS = [
    llmir.SamplingParams(seed=1, top_k=40, max_tokens=12, ignore_eos=True),
    llmir.SamplingParams(
        seed=2, top_k=64, top_p=0.8, temperature=0.7, max_tokens=9, ignore_eos=True
    ),
    llmir.SamplingParams(temperature=0, max_tokens=12, ignore_eos=True),
]


class Compared(Session):
    """A session whose step_topk is compared with its step."""

    num_compared = 0

    def step_topk(self, batch: StepBatch) -> TopLogits:
        logits, found = self.step(batch), super().step_topk(batch)
        ids = np.argsort(-logits, axis=1, kind="stable")[:, : self.top_k]
        np.testing.assert_array_equal(found.token_ids, ids)
        np.testing.assert_array_equal(found.values, np.take_along_axis(logits, ids, axis=1))
        weights = np.exp(logits.astype(np.float64) - found.values[:, :1]).sum(axis=1)
        np.testing.assert_allclose(found.weights, weights, rtol=1e-5)
        self.num_compared += 1
        return found


class WholeRows(Session):
    """A session that has no step_topk."""

    top_k = 0


def token_ids(llm: LLM, prompts: Any, params: Any) -> list[list[int]]:
    return [o.outputs[0].token_ids for o in llm.generate(prompts, params)]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", {"weights": "q8_0"}),
        ("qwen2", {"weights": "q4_0", "fusion": "ops"}),
        ("llama-tied", {"activations": "f32"}),
    ],
)
def test_the_same_text_as_with_whole_rows(
    kind: str, options: dict[str, Any], tiny_checkpoint: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    artifact = llmir.compile(tiny_checkpoint(kind), "cpu", **options)
    (module,) = artifact.manifest.modules
    assert module.entry_points == ("step", "step_greedy", "step_topk")
    assert "packed_topk" in {p.op for p in module.providers}
    answers = []
    for session in (Compared, WholeRows):
        monkeypatch.setattr("llmir.runtime.session.Session", session)
        llm = llmir.LLM(artifact, kv_cache_memory_bytes=KV_BYTES)
        runner = llm.engine.core.runner
        assert isinstance(runner, session)
        together = token_ids(llm, PROMPTS, PARAMS)
        alone = [token_ids(llm, [x], p)[0] for x, p in zip(PROMPTS, PARAMS, strict=True)]
        assert together == alone
        answers.append(together)
        if isinstance(runner, Compared):
            assert runner.top_k == 64
            assert runner.num_compared > 20
    assert answers[0] == answers[1]


class ComparedOnDevice(Compared):
    """On a software device too, whose step_topk is left alone otherwise."""

    top_k = 64


@pytest.mark.targets
def test_on_vulkan_the_same_text_as_with_whole_rows(
    tiny_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = llmir.compile(tiny_checkpoint("llama"), "vulkan", weights="q8_0")
    (module,) = artifact.manifest.modules
    assert module.entry_points == ("step", "step_greedy", "step_topk")
    assert ("topk", "vulkan_spirv") in {(p.op, p.provider) for p in module.providers}
    answers = []
    for session in (ComparedOnDevice, WholeRows):
        monkeypatch.setattr("llmir.runtime.session.Session", session)
        llm = llmir.LLM(artifact, device="vulkan://0", kv_cache_memory_bytes=KV_BYTES)
        answers.append(token_ids(llm, PROMPTS, PARAMS))
        runner = llm.engine.core.runner
        if isinstance(runner, Compared):
            assert runner.num_compared > 5
    assert answers[0] == answers[1]


@pytest.mark.targets
@pytest.mark.parametrize(
    ("target", "provider"),
    [("cuda", "cuda_ptx"), ("rocm", "hip"), ("metal", "portable")],
)
def test_every_gpu_has_one(
    target: str, provider: str, tiny_checkpoint: Callable[..., Path]
) -> None:
    checkpoint = tiny_checkpoint("llama", num_hidden_layers=1)
    (module,) = llmir.compile(checkpoint, target).manifest.modules
    assert "step_topk" in module.entry_points
    assert ("topk", provider) in {(p.op, p.provider) for p in module.providers}


def test_without_kernels_for_the_head_there_is_none(
    tiny_checkpoint: Callable[..., Path],
) -> None:
    checkpoint = tiny_checkpoint("llama", hidden_size=72, head_dim=16)
    artifact = llmir.compile(checkpoint, "cpu")
    assert artifact.manifest.modules[0].entry_points == ("step", "step_greedy")
    opened = open_artifact(artifact, kv_cache_memory_bytes=KV_BYTES)
    assert opened.runner.top_k == 0
    llm = llmir.LLM(artifact, kv_cache_memory_bytes=KV_BYTES)
    assert len(token_ids(llm, PROMPTS[:1], PARAMS[0])[0]) == 12
