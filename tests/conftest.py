"""What all tests share: the demo model, its artifact, tiny artifacts, and a cache of their own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import llmir

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tools")]

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Compiled artifacts are kept between runs: the cache key covers llmir's own sources.
os.environ["LLMIR_CACHE"] = str(ROOT / ".cache" / "llmir")

# In pytest's workers, torch and BLAS get no more threads than there are cores: more would wait
# for each other in loops, and take the time from the tests beside them.
_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, str(max(1, (os.cpu_count() or 1) // _workers)))

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


@pytest.fixture(scope="session")
def one_layer(tiny_checkpoint: Callable[..., Path]) -> Path:
    """A tiny Llama of one layer, which compiles in half the time: for tests of compiling itself,
    of which no two can share what was compiled, and to which it is one model or another."""
    return tiny_checkpoint("llama", num_hidden_layers=1)


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


@pytest.fixture(scope="session")
def short_steps(tiny_checkpoint: Callable[..., Path]) -> llmir.Artifact:
    """The same with steps of at most 32 tokens and 4 sequences, and float32 keys and values."""
    import llmir

    return llmir.compile(
        tiny_checkpoint("llama"), kv_dtype="f32", max_num_batched_tokens=32, max_num_seqs=4
    )
