"""The weights files of an artifact for several targets: each target reads its own, and only it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from iree.runtime import ParameterIndex

import llmir


def names_in(path: Path) -> set[str]:
    index = ParameterIndex()
    index.load(str(path))
    return {name for name, _ in index.items()}


def test_packed_for_the_cpu_and_portable_for_vulkan(tiny_checkpoint: Callable[..., Path]) -> None:
    made = llmir.compile(tiny_checkpoint("llama-tied"), ["cpu", "vulkan"], weights="q8_0")
    cpu, vulkan = made.manifest.modules
    assert (cpu.weights, vulkan.weights) == ("weights.packed.irpa", "weights.portable.irpa")
    packed, portable = (names_in(made.path / m.weights) for m in (cpu, vulkan))
    assert any(name.endswith(".packed") for name in packed)
    assert not any(name.endswith((".quants", ".scales")) for name in packed)
    assert any(name.endswith(".quants") for name in portable)
    assert not any(name.endswith(".packed") for name in portable)
    # Vectors that both read are in both.
    assert "rope_table" in packed & portable


def test_a_target_runs_without_the_others_file(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """Each maps only its own: the other's may be gone."""
    alone = llmir.LLM(tiny_checkpoint("llama-tied"), weights="q8_0")
    made = llmir.compile(
        tiny_checkpoint("llama-tied"), ["cpu", "vulkan"], tmp_path / "both", weights="q8_0"
    )
    llm = llmir.LLM(made.path, device="local-task")
    (made.path / "weights.portable.irpa").unlink()
    np.testing.assert_array_equal(llm.logits([5, 6, 7]), alone.logits([5, 6, 7]))
    assert str(made.path / "weights.portable.irpa") not in Path("/proc/self/maps").read_text()
