"""llmir opt."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from cli.helpers import Llmir

from llmir.passes.base import pass_names

MODULE = """
func.func @f(%x: tensor<?x64xf32>, %w: tensor<64xf32>) -> tensor<?x64xf32> {
  %a = "llm.rms_norm"(%x, %w) {eps = 1.0e-05 : f64} : (tensor<?x64xf32>, tensor<64xf32>) -> tensor<?x64xf32>
  %b = "llm.rms_norm"(%x, %w) {eps = 1.0e-05 : f64} : (tensor<?x64xf32>, tensor<64xf32>) -> tensor<?x64xf32>
  return %a : tensor<?x64xf32>
}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "module.mlir"
    path.write_text(MODULE)
    return path


def test_passes_run_in_order(llmir: Llmir, file: Path, tmp_path: Path) -> None:
    assert llmir.ok("opt", file).count("llm.rms_norm") == 2
    assert llmir.ok("opt", "-p", "dce-llm", file).count("llm.rms_norm") == 1
    output = tmp_path / "out.mlir"
    assert llmir.ok("opt", "-p", "select-providers{target=vulkan}", file, "-o", output) == ""
    assert 'llm.provider = "portable"' in output.read_text()
    lowered = llmir.ok("opt", "-p", "select-providers{target=cpu},dce-llm,lower-llm", file)
    assert "llm.rms_norm" not in lowered
    assert "linalg.generic" in lowered


def test_standard_input(llmir: Llmir, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in (["opt"], ["opt", "-"]):
        stdin = io.TextIOWrapper(io.BytesIO(MODULE.encode()))
        monkeypatch.setattr(sys, "stdin", stdin)
        assert "llm.rms_norm" in llmir.ok(*arguments)


def test_the_output_can_be_read_again(llmir: Llmir, file: Path, tmp_path: Path) -> None:
    once = llmir.ok("opt", "-p", "cse-llm", file)
    (tmp_path / "once.mlir").write_text(once)
    assert llmir.ok("opt", tmp_path / "once.mlir") == once


def test_print_ir_after(llmir: Llmir, file: Path) -> None:
    result = llmir("opt", "-p", "cse-llm,dce-llm", "--print-ir-after", "cse-llm", file)
    assert result.err.startswith("// ----- IR after cse-llm -----\n")
    assert "IR after dce-llm" not in result.err


def test_list(llmir: Llmir) -> None:
    assert tuple(llmir.ok("opt", "--list").split()) == pass_names()


def test_errors(llmir: Llmir, file: Path) -> None:
    code, text = llmir.error("opt", "-p", "cse", file)
    assert (code, text[:31]) == (2, "unknown pass 'cse'; known: add-g"[:31])
    code, text = llmir.error("opt", "-p", "cse-llm{deep=1}", file)
    assert (code, "has no option 'deep'" in text) == (2, True)
    file.write_text(MODULE.replace("%w) {eps", "%w) {epsilon", 1))
    code, text = llmir.error("opt", file)
    assert (code, text[:27]) == (4, "in the input: llm.rms_norm:")
    file.write_text(MODULE)
    code, text = llmir.error("opt", "-p", "cse-llm{", file)
    assert (code, text[:19]) == (2, "braces do not match")
    file.write_bytes(b"\xff")
    assert "is not UTF-8 text" in llmir.error("opt", file)[1]
