"""What all tests share: the demo model, its artifact, tiny artifacts, and a cache of their own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tools")]

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Compiled artifacts are kept between runs: the cache key covers llmir's own sources.
os.environ["LLMIR_CACHE"] = str(ROOT / ".cache" / "llmir")

DEMO_QUESTION = "What is the capital of France?"


@pytest.fixture(scope="session")
def demo_gguf() -> Path:
    """The demo model's GGUF file; a failure to get it is a failure of the test."""
    from fetch_demo import fetch_demo

    return fetch_demo()


@pytest.fixture(scope="session")
def demo_artifact(demo_gguf: Path) -> Path:
    """The demo model compiled for this machine, its weights as they are in the file."""
    import llmir

    return llmir.compile(demo_gguf).path


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """make(kind, **overrides) → a tiny random-weight Hugging Face directory, one per session."""
    from checkpoints import make_checkpoint

    made: dict[str, Path] = {}

    def make(kind: str, **overrides: object) -> Path:
        key = f"{kind}{sorted(overrides.items())}"
        if key not in made:
            made[key] = tmp_path_factory.mktemp("checkpoint") / kind
            make_checkpoint(made[key], kind, **overrides)
        return made[key]

    return make


@pytest.fixture
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache directory for one test."""
    directory = tmp_path / "cache"
    monkeypatch.setenv("LLMIR_CACHE", str(directory))
    return directory


@pytest.fixture(scope="session")
def tiny_artifact(tiny_checkpoint: Callable[..., Path]) -> Path:
    """A tiny random-weight Llama compiled for this machine."""
    import llmir

    return llmir.compile(tiny_checkpoint("llama")).path
