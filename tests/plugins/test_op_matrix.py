"""The matrix of ops and targets in plugins/README.md is what the registry says."""

from __future__ import annotations

import op_matrix
import pytest


def test_the_readme_has_the_matrix() -> None:
    text = op_matrix.README.read_text(encoding="utf-8")
    assert op_matrix.with_matrix(text) == text, "run: python tools/op_matrix.py --write"


def test_a_changed_registry_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    text = op_matrix.README.read_text(encoding="utf-8")
    lowerings_of = op_matrix.lowerings_of
    monkeypatch.setattr(op_matrix, "lowerings_of", lambda op: lowerings_of(op)[:1])
    assert op_matrix.with_matrix(text) != text


def test_a_readme_without_the_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks the marks"):
        op_matrix.with_matrix("# Kernels")
