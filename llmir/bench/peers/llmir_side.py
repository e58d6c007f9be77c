"""llmir's own side: an artifact, in a process like a peer's."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from llmir.artifact import Artifact
from llmir.bench.costs import StepCosts
from llmir.bench.peers.base import LLMIR, Side
from llmir.bench.peers.metrics import Metric
from llmir.bench.peers.prepare import worker_command
from llmir.errors import OptionError
from llmir.runtime.choice import choose_module
from llmir.runtime.memory import DEFAULT_KV_BYTES

WORKER = "with_llmir"


def check(artifact: Artifact, metrics: Iterable[Metric]) -> None:
    """Raises OptionError if the artifact was compiled for less than a metric needs."""
    limits = artifact.manifest.limits
    for metric in metrics:
        if metric.tokens_per_seq > limits.max_model_len:
            raise OptionError(
                f"{metric.name} needs {metric.tokens_per_seq} tokens in a sequence; the "
                f"artifact was compiled for {limits.max_model_len}"
            )
        most = min(limits.max_num_seqs, limits.max_num_batched_tokens)
        if metric.batch > most:
            raise OptionError(
                f"{metric.name} needs {metric.batch} sequences in a step; the artifact was "
                f"compiled for {most}"
            )


def costs_of(artifact: Artifact) -> StepCosts:
    """Of the module that is measured: peers are compared on CPUs."""
    return StepCosts.of(artifact.manifest, choose_module(artifact, "local-task"))


def side(artifact: Artifact, metrics: Iterable[Metric], num_threads: int, logs: Path) -> Side:
    """The side that measures `metrics`, with KV pages enough for each."""
    costs = costs_of(artifact)
    needed = max(costs.kv_bytes(m.batch, m.tokens_per_seq) for m in metrics)
    return Side(
        name=LLMIR,
        command=worker_command(sys.executable, WORKER, {}),
        load={
            "do": "load",
            "spec": {
                "artifact": str(artifact.path),
                "threads": num_threads,
                "kv_cache_memory_bytes": max(needed, DEFAULT_KV_BYTES),
            },
        },
        log=logs / "llmir.log",
        is_same_file=True,
    )


def file_format(artifact: Artifact) -> str:
    """The format of most of the source's bytes, as others write it: "Q4_1"."""
    num_bytes: dict[str, int] = {}
    for tensor in artifact.manifest.tensors:
        before = num_bytes.get(tensor.source_format, 0)
        num_bytes[tensor.source_format] = before + tensor.num_bytes
    return max(num_bytes, key=lambda name: num_bytes[name]).upper()
