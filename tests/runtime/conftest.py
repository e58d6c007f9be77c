"""What the tests of the runtime share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import llmir


@pytest.fixture(scope="session")
def llama_everywhere(tiny_checkpoint: Callable[..., Path]) -> llmir.Artifact:
    """A tiny Llama for the CPU and Vulkan, as tests/targets compiles it too."""
    return llmir.compile(tiny_checkpoint("llama"), ["cpu", "vulkan"], kv_dtype="f32")
