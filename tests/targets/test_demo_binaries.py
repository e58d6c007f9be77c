"""The demo model for the targets that this machine cannot run: compiled, not run.

One compilation for all of them, read by several tests: what is embedded is what each target's
driver takes, and every target is compiled in a minute and a half.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from targets import binaries

import llmir

TARGETS = ("cuda:sm_80", "rocm:gfx942", "rocm:gfx1100", "metal", "cpu:aarch64-neon")
MOST_SECONDS = 90

pytestmark = [pytest.mark.targets, pytest.mark.timeout(900)]


@dataclass(frozen=True)
class Compiled:
    """own_share: of the seconds that passed, those that a processor worked for the compilation."""

    artifact: llmir.Artifact
    own_share: float


@pytest.fixture(scope="module")
def compiled(demo_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    output = tmp_path_factory.mktemp("demo") / "artifact"  # not the cache: it is to be compiled now
    before = os.times()
    artifact = llmir.compile(demo_gguf, TARGETS, output=output)
    after = os.times()
    worked = sum(after[:4]) - sum(before[:4])
    return Compiled(artifact, min(1.0, worked / (after.elapsed - before.elapsed)))


@pytest.fixture(scope="module")
def made(compiled: Compiled) -> llmir.Artifact:
    return compiled.artifact


def code_of(made: llmir.Artifact, target: str) -> list[bytes]:
    return binaries.executables(made.file(made.manifest.module_for(target).file))


def test_the_embedded_binaries_and_their_entry_points(made: llmir.Artifact) -> None:
    entries = {
        "cuda:sm_80": [binaries.ptx_entries(c, "sm_80") for c in code_of(made, "cuda:sm_80")],
        "rocm:gfx942": [binaries.hsaco_entries(c, "gfx942") for c in code_of(made, "rocm:gfx942")],
        "rocm:gfx1100": [
            binaries.hsaco_entries(c, "gfx1100") for c in code_of(made, "rocm:gfx1100")
        ],
        "metal": [binaries.msl_entries(c) for c in code_of(made, "metal")],
        "cpu:aarch64-neon": [
            binaries.aarch64_entries(c) for c in code_of(made, "cpu:aarch64-neon")
        ],
    }
    for target, lists in entries.items():
        names = [name for some in lists for name in some]
        assert len(names) >= 10, f"{target}: {names}"
        # A kernel of ours stands in each module that dispatches it.
        own = [name for name in names if name.startswith("step")]
        assert len(set(own)) == len(own), target
        assert all(n.startswith(("step", "llmir_")) for n in names), f"{target}: {names}"
    assert {"llmir_matmul_q4_1_int8_16", "llmir_append_kv_f32"} <= set(
        entries["cpu:aarch64-neon"][0]
    )
    assert sorted(entries["rocm:gfx942"][0]) == sorted(entries["rocm:gfx1100"][0])


def test_each_is_compiled_in_a_minute_and_a_half(compiled: Compiled) -> None:
    """But for the time that other tests had the processor."""
    seconds = compiled.artifact.manifest.compile_seconds
    for target in TARGETS:
        passed = seconds[f"lowering for {target}"] + seconds[f"compiling for {target}"]
        took = passed * compiled.own_share
        assert took <= MOST_SECONDS, f"{target} took {took} s: {dict(seconds)}"


def test_targets_share_the_weights_of_their_layout(made: llmir.Artifact) -> None:
    """Portable code of all GPUs reads one file, the C kernels another; no file is for nobody."""
    modules = made.manifest.modules
    portable = {
        m.weights for m in modules if all(use.provider == "portable" for use in m.providers)
    }
    assert len(portable) <= 1
    stored = {name for name in made.manifest.files if name.endswith(".irpa")}
    assert stored == {m.weights for m in modules}
    assert len(stored) <= len({tuple(sorted({u.provider for u in m.providers})) for m in modules})
