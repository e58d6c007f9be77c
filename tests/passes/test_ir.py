"""Reading operations that MLIR's Python bindings have no classes of."""

from __future__ import annotations

import importlib.abc
import sys

import pytest

from llmir.passes.ir import llm_ops, parse_module

MODULE = """
func.func @f(%a: tensor<?x8xf32>, %b: tensor<?x8xf32>) -> tensor<?x8xf32> {
  %0 = "torch.constant.int"() {value = 1 : i64} : () -> !torch.int
  %1 = "llm.add"(%a, %b) : (tensor<?x8xf32>, tensor<?x8xf32>) -> tensor<?x8xf32>
  return %1 : tensor<?x8xf32>
}
"""


class _Searches(importlib.abc.MetaPathFinder):
    """Counts the modules that Python searches for."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        self.names.append(fullname)


def test_ops_without_a_python_module_cost_no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    llm_ops(parse_module(MODULE))  # loads what is there
    searches = _Searches()
    monkeypatch.setattr(sys, "meta_path", [searches, *sys.meta_path])
    assert len(llm_ops(parse_module(MODULE))) == 1
    assert searches.names == []
