"""The demo model gives the CPU's answers on Vulkan: `llmir verify` says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli.helpers import Llmir
from parity.reference import EXACT

import llmir


@pytest.mark.targets
@pytest.mark.timeout(900)  # a software device computes 135 million weights a token
def test_the_demo_model_agrees_on_cpu_and_vulkan(
    demo_gguf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Few tokens, so that it takes no more than some minutes."""
    artifact = llmir.compile(demo_gguf, ["cpu", "vulkan"], **EXACT)
    given = ("--devices", "cpu,vulkan", "--built-in", "prose", "--max-tokens", 4)
    (pair,) = json.loads(Llmir(capsys).ok("verify", artifact.path, *given, "--json"))["pairs"]
    assert pair["passed"]
    assert pair["thresholds"]["margin"] == 1e-2
    assert pair["first_divergence"] is None or pair["first_divergence"]["is_tie"]
    assert pair["num_positions"] > 8
