"""What tests of the command line share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cli.helpers import Llmir

import llmir


@pytest.fixture(scope="session")
def tiny_artifact(tiny_checkpoint: Callable[..., Path]) -> Path:
    """A tiny random model, compiled for this machine."""
    return llmir.compile(tiny_checkpoint("llama")).path


@pytest.fixture(name="llmir")
def llmir_fixture(capsys: pytest.CaptureFixture[str]) -> Llmir:
    """The command, run in this process."""
    return Llmir(capsys)
