"""llmir's own servers: `llmir serve` on an artifact, and a variant that computes prompts whole."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llmir
from llmir.artifact import Artifact
from llmir.bench.peers.base import LLMIR
from llmir.bench.peers.serving.base import MODEL_NAME, Server

UNCHUNKED = f"{LLMIR} unchunked"
VARIANTS: dict[str, dict[str, Any]] = {
    # A step holds a prompt of any scenario, and the tokens of those who decode beside it.
    UNCHUNKED: {"max_num_batched_tokens": 4096},
}
"""Name → options of llmir.compile besides those of llmir itself."""


def server(
    artifact: Artifact,
    *,
    name: str = LLMIR,
    num_threads: int | None,
    arguments: Sequence[str],
    log: Path,
) -> Server:
    """The server of an artifact.  arguments: further ones of `llmir serve`; threads None: its own
    choice."""
    threads = () if num_threads is None else ("--threads", str(num_threads))
    return Server(
        name=name,
        command=(
            *(sys.executable, "-m", "llmir", "serve", str(artifact.path)),
            *("--host", "{host}", "--port", "{port}", "--served-model-name", MODEL_NAME),
            *threads,
            *arguments,
        ),
        log=log,
        versions={"llmir": llmir.__version__, **artifact.manifest.tools},
        is_same_file=True,
        is_own=True,
    )
