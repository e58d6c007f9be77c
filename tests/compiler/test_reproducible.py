"""The files of an artifact: the same bytes for the same inputs, and for all who may read any."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import llmir


def test_a_second_compile_gives_the_same_files(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """All but the manifest, which has the date."""
    # Two windows: layers that differ in attributes alone.
    checkpoint = tiny_checkpoint("qwen2-window")
    # The first may be of another process, and of an earlier run.
    first, second = llmir.compile(checkpoint), llmir.compile(checkpoint, output=tmp_path / "again")
    names = {p.name for p in first.path.iterdir()} - {"manifest.json"}
    assert any(name.endswith(".vmfb") for name in names)
    for name in names:
        assert (first.path / name).read_bytes() == (second.path / name).read_bytes(), name


def test_whoever_may_read_the_manifest_may_read_all(tiny_artifact: Path) -> None:
    modes = {p.name: p.stat().st_mode for p in tiny_artifact.iterdir()}
    assert set(modes.values()) == {modes["manifest.json"]}
