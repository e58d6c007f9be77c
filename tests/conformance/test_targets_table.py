"""Every op × provider × target × dtype: compiled, and run where there is a device; the table.

`python benchmarks/conformance.py` runs the same suite on more shapes and writes its page.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conformance.on_targets import program, suite
from conformance.on_targets.draw import Verdict, exact, near
from conformance.on_targets.draws import all_draws, ops_without_draws
from conformance.on_targets.table import markdown

from llmir.dialect_ext import registry
from llmir.dialect_ext.base import Lowering
from llmir.targets import resolve

RUN_HERE = ("cpu", "vulkan")


def test_every_op_has_draws() -> None:
    assert not ops_without_draws()
    for draw in all_draws():
        assert draw.call.results


def test_a_difference_is_measured_where_it_is() -> None:
    expected = np.array([[1.0, -4.0], [np.nan, 2.0]])
    y = np.array([[1.0, -4.5], [np.nan, 2.0]], np.float32)
    verdict = near(y, expected, np.array([[1.0, 0.25], [1.0, 1.0]]))
    assert verdict == Verdict(error=0.125, share=2.0)
    assert not verdict.passed
    assert near(y, expected, 0.5).passed
    assert near(np.full((2, 2), np.nan), expected, 9.0).problem == "3 of 4 are NaN or infinite"
    assert not near(np.zeros((2, 2)), expected, 9.0).passed
    assert exact(np.array([1, 2]), np.array([1, 3])).problem == "1 of 2 differ"
    assert exact(np.array([np.nan]), np.array([np.nan])).passed


@pytest.mark.parametrize("target", ["cpu", pytest.param("vulkan", marks=pytest.mark.targets)])
def test_wrong_results_and_text_that_is_no_mlir_fail(
    target: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A provider that subtracts, one that emits nonsense, and a right one, in one module."""
    (right,) = registry.lowerings_of("add")

    def other(variant: str, emit: Any) -> Lowering:
        return dataclasses.replace(right, provider="wrong", variant=variant, emit=emit)

    def subtract(call: Any, symbol: str) -> str:
        return right.emit(call, symbol).replace("arith.addf", "arith.subf")

    broken = other("broken", lambda call, symbol: f"func.func @{symbol}(")
    choices = {"add": (other("minus", subtract), broken, right)}
    monkeypatch.setattr(program, "lowerings_of", lambda op: choices[op])
    outcomes = suite.run_target(target, tmp_path, ops=["add"], every=False)
    found = {o.provider: o for o in outcomes}
    assert found["portable"].status == "ran"
    assert found["portable"].verdict == Verdict()
    assert found["wrong/minus"].status == "failed"
    assert "times what is allowed" in found["wrong/minus"].reason
    assert found["wrong/broken"].status == "failed"
    assert "iree-compile" in found["wrong/broken"].reason
    table = markdown(outcomes)
    assert "FAILED |" in table
    assert "add wrong/minus f32 D=37: off by" in table


def test_a_process_that_dies_fails_its_case_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = all_draws()
    index = next(i for i, d in enumerate(draws) if d.op == "add")
    use = program.Use(draw=index, lowering=registry.lowerings_of("add")[0])
    function = program.Function(name="f0", text="", flags=(), uses=[use] * 3)
    answers = [([{"verdict": {}}, {"begin": [1, 0]}], "status -11"), ([{"verdict": {}}], "")]
    monkeypatch.setattr(suite, "_worker", lambda *args: answers.pop(0))
    compiled = SimpleNamespace(functions=[function], path=Path("x"))
    outcomes = suite._run(compiled, resolve("cpu"), "local-task", 0)
    assert [o.status for o in outcomes] == ["ran", "failed", "ran"]
    assert outcomes[1].reason == "status -11"


@pytest.mark.targets
@pytest.mark.timeout(900)
@pytest.mark.parametrize("target", suite.TARGETS)
def test_every_op_on_every_target(target: str, tmp_path: Path) -> None:
    outcomes = suite.run_target(target, tmp_path, every=False)
    failed = [o for o in outcomes if o.status == "failed"]
    assert not failed, markdown(failed)
    wanted = "ran" if target in RUN_HERE else "compiled"
    reached = {o.op for o in outcomes if o.status in ("ran", wanted)}
    # The others are ops that passes make for kernels that this target does not have.
    portable = {
        op
        for op in registry.op_names()
        if any(x.provider == "portable" for x in registry.lowerings_of(op))
    }
    assert portable <= reached
    if target in RUN_HERE:
        assert not any(o.status == "compiled" for o in outcomes), "no device: make test installs it"
