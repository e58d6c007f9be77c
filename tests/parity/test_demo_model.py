"""The demo model against transformers on weights that the gguf package dequantised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmir

from . import demo_accuracy as demo
from . import reference

# Not in the artifact cache, which keeps what it has: 100 MB for every edit of llmir.
EXACT_ARTIFACT = Path(__file__).parents[2] / ".cache" / "parity" / "demo-exact"


@pytest.fixture(scope="session")
def demo_reference(demo_gguf: Path) -> Any:
    return reference.from_llama_gguf(demo_gguf)


@pytest.mark.timeout(600)  # 40 s on two free cores
def test_logits_and_greedy_tokens(
    demo_gguf: Path, demo_artifact: Path, demo_reference: Any
) -> None:
    """One test, because the exact artifact and the 20 answers take half a minute to make."""
    exact = llmir.LLM(llmir.compile(demo_gguf, output=EXACT_ARTIFACT, **reference.EXACT))
    answers = demo.answers(exact, demo_reference)
    differences = [np.abs(a.rows_of(exact) - a.expected).max() for a in answers]
    assert max(differences) <= 5e-3
    assert [a.wrong_choices() for a in answers] == [[]] * 20

    # As compiled by default, activations and KV cache are rounded.
    kept = llmir.LLM(demo_artifact)
    assert demo.agreement([a.rows_of(kept) for a in answers], answers) >= 0.97


def test_perplexity_of_a_window(demo_gguf: Path, demo_artifact: Path, demo_reference: Any) -> None:
    """All four windows: benchmarks/accuracy.py."""
    llm = llmir.LLM(demo_artifact)
    window = demo.windows(demo_gguf)[1]
    expected = demo.perplexity([demo.reference_scores(demo_reference, window)])
    assert demo.perplexity([llm.score(window)]) == pytest.approx(expected, rel=0.005)
