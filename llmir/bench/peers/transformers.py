"""transformers on PyTorch, eager, with the file's weights as bfloat16."""

from __future__ import annotations

from collections.abc import Sequence

from llmir.bench.peers.base import Environment, MadeModel, SidePlan

NAME = "transformers"
WORKER = "with_transformers"
ENVIRONMENT = Environment(
    name="transformers",
    installs=(
        ("torch==2.13.0",),
        (
            "transformers==5.19.0",
            "accelerate==1.15.0",
            "gguf==0.19.0",
            "tokenizers==0.23.3",
            "safetensors==0.8.0",
            "numpy==2.4.6",
        ),
    ),
)
BF16_DIRECTORY = MadeModel(form="bf16-safetensors", worker=WORKER, environment=ENVIRONMENT)


def sides(file_format: str, num_threads: int) -> Sequence[SidePlan]:
    """bfloat16 alone: float32 reads twice the bytes."""
    return [
        SidePlan(
            name=f"{NAME} bf16",
            key="bf16",
            worker=WORKER,
            environment=ENVIRONMENT,
            model=BF16_DIRECTORY,
        )
    ]
