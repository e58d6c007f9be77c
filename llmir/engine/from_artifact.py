"""What an engine needs, opened from an artifact on disk."""

from __future__ import annotations

from dataclasses import dataclass

from llmir.artifact import Artifact
from llmir.engine.generation_config import GenerationConfig
from llmir.engine.tokenizer import Tokenizer
from llmir.runtime.base import StepRunner


@dataclass(frozen=True, slots=True)
class Opened:
    """The parts of `LLM`, as an artifact gives them."""

    runner: StepRunner
    tokenizer: Tokenizer | None
    generation_config: GenerationConfig


def open_artifact(
    artifact: Artifact,
    *,
    device: str | None = None,
    kv_cache_memory_bytes: int | None = None,
    device_memory_fraction: float | None = None,
    num_threads: int | None = None,
) -> Opened:
    """Open an artifact on a device.  See runtime.session.SessionOptions and Session's errors."""
    # The only place where the engine meets IREE; a fake runner never comes here.
    from llmir.runtime.session import Session, SessionOptions

    options = SessionOptions(
        device=device,
        kv_cache_bytes=kv_cache_memory_bytes,
        device_memory_fraction=device_memory_fraction,
        num_threads=num_threads,
    )
    runner = Session(artifact, options)
    has_tokenizer = artifact.file("tokenizer.json").is_file()
    return Opened(
        runner=runner,
        tokenizer=Tokenizer.from_dir(artifact.path) if has_tokenizer else None,
        generation_config=GenerationConfig.from_dir(artifact.path),
    )
