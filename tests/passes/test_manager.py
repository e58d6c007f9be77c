"""The pass manager: verification between passes, printing, errors; and pass names as text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
from iree.compiler import ir

from llmir.errors import CompileError, OptionError, UnknownNameError, VerifyError
from llmir.passes.base import Pass, get_pass, pass_names
from llmir.passes.ir import llm_ops, parse_module
from llmir.passes.manager import PassManager, verify
from llmir.passes.pipelines import split_pipeline

NORM = """
func.func @f(%x: tensor<?x64xf32>, %w: tensor<64xf32>) -> tensor<?x64xf32> {
  %a = "llm.rms_norm"(%x, %w) {eps = 1.0e-05 : f64} : (tensor<?x64xf32>, tensor<64xf32>) -> tensor<?x64xf32>
  return %a : tensor<?x64xf32>
}
"""


@dataclass(frozen=True, slots=True)
class Break(Pass):
    """Takes an op's attribute away, as a wrong pass might."""

    name: ClassVar[str] = "break"

    def run(self, module: ir.Module) -> None:
        (op,) = llm_ops(module)
        del op.attributes["eps"]


def test_a_pass_that_breaks_an_op_is_named() -> None:
    with pytest.raises(
        VerifyError, match=r"after pass break: llm.rms_norm: attribute 'eps' \(float\) is missing"
    ):
        PassManager().run(parse_module(NORM), ["cse-llm", Break(), "dce-llm"])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("tensor<64xf32>) ->", "tensor<64xf32>, i32) ->", None),
        ("-> tensor<?x64xf32>\n  return", "-> tensor<?x32xf32>\n  return", None),
        ("eps = 1.0e-05 : f64", "eps = 1 : i64", "attribute 'eps' must be float, got 1"),
        ("eps = 1.0e-05 : f64", 'eps = "small"', "attribute 'eps' must be float, got 'small'"),
        ("eps = 1.0e-05 : f64", "eps = [1]", r"is \[1\], not a number, bool or string"),
        ("llm.rms_norm", "llm.no_such_op", "unknown op 'no_such_op'; known: add, append_kv,"),
    ],
)
def test_wrong_ir_is_refused(old: str, new: str, message: str | None) -> None:
    text = NORM.replace(old, new)
    assert text != NORM
    if message is None:
        with pytest.raises(CompileError, match="not valid MLIR"):
            parse_module(text)
        return
    with pytest.raises((VerifyError, UnknownNameError), match=message):
        verify(parse_module(text), "at the start")


def test_a_wrong_result_type_is_refused() -> None:
    text = """
func.func @f(%x: tensor<?x64xf32>, %w: tensor<64xf32>) -> tensor<?x32xf32> {
  %a = "llm.rms_norm"(%x, %w) {eps = 1.0e-05 : f64} : (tensor<?x64xf32>, tensor<64xf32>) -> tensor<?x32xf32>
  return %a : tensor<?x32xf32>
}
"""
    with pytest.raises(VerifyError, match=r"result must be tensor<\?x64xf32>, got tensor<\?x32"):
        verify(parse_module(text), "at the start")


def test_ir_is_printed_after_the_named_pass(capsys: pytest.CaptureFixture[str]) -> None:
    PassManager(print_ir_after=("dce-llm",)).run(parse_module(NORM), ["cse-llm", "dce-llm"])
    err = capsys.readouterr().err
    assert err.startswith("// ----- IR after dce-llm -----\nmodule {")
    assert err.count("llm.rms_norm") == 1


def test_an_error_names_its_pass() -> None:
    with pytest.raises(CompileError, match="has no provider; run select-providers first") as error:
        PassManager().run(parse_module(NORM), ["lower-llm"])
    assert error.value.__notes__ == ["in pass lower-llm"]


def test_unknown_passes_and_options() -> None:
    with pytest.raises(
        UnknownNameError,
        match="unknown pass 'fuse'; known: add-greedy-entry, add-topk-entry, chain",
    ):
        get_pass("fuse")
    with pytest.raises(UnknownNameError, match="unknown pass 'fuse'"):
        PassManager(print_ir_after=("fuse",))
    with pytest.raises(OptionError, match="pass select-providers has no option 'cpu'; it has: ta"):
        get_pass("select-providers{cpu=1}")
    with pytest.raises(OptionError, match="option k of pass add-topk-entry must be an integer"):
        get_pass("add-topk-entry{k=many}")
    for name in pass_names():
        assert get_pass(name).name == name


def test_pipelines_are_split_outside_braces() -> None:
    assert split_pipeline("a, b{x=1,y=2},c") == ("a", "b{x=1,y=2}", "c")
    with pytest.raises(OptionError, match="braces do not match"):
        split_pipeline("a{x=1")
