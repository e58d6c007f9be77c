"""Runs every .mlir file here: the passes its first line names, then FileCheck on the result."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llmir.passes.base import pass_names
from llmir.passes.ir import parse_module
from llmir.passes.manager import PassManager
from llmir.passes.pipelines import split_pipeline

FILES = sorted(Path(__file__).parent.glob("*.mlir"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_file(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    head, _, _ = text.partition("\n")
    module = parse_module(text)
    PassManager().run(module, split_pipeline(head.removeprefix("// PASSES:").strip()))
    done = subprocess.run(
        [sys.executable, "-m", "filecheck", str(path)],
        input=str(module),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{module}"


def test_every_pass_has_a_file_of_its_name() -> None:
    assert {p.stem for p in FILES} >= set(pass_names())
