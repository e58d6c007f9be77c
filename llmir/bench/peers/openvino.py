"""OpenVINO GenAI, which reads GGUF files: the file itself, and the same weights as F16 and Q8_0.

It keeps the quantisation of a file's weights, and of the KV cache chooses u8.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmir.bench.peers.base import Environment, SidePlan
from llmir.bench.peers.llama_cpp import made_gguf

NAME = "openvino"
WORKER = "with_openvino"
ENVIRONMENT = Environment(
    name="openvino",
    installs=(
        (
            "openvino-genai==2026.4.1.0",
            "openvino==2026.4.1",
            "openvino-tokenizers==2026.4.1.0",
            "numpy==2.4.6",
        ),
    ),
)
# All prompts of a metric fit in one step, so that all sequences decode together from then on.
_SPEC = {"max_batched_tokens": 8192, "cache_gb": 2}
_BF16_CACHE = {"properties": {"KV_CACHE_PRECISION": "bf16"}}


def sides(file_format: str, num_threads: int) -> Sequence[SidePlan]:
    """The file, F16 and Q8_0; with a KV cache of bf16 if asked for."""
    forms = [(file_format, "file", None), ("fp16", "fp16", "f16"), ("Q8_0", "q8_0", "q8_0")]
    return [
        SidePlan(
            name=f"{NAME} {name}{suffix.replace('-', ' ')}",
            key=key + suffix,
            worker=WORKER,
            environment=ENVIRONMENT,
            model=None if form is None else made_gguf(form),
            spec={**_SPEC, **more},
            is_same_file=form is None,
            by_default=not suffix,
        )
        for name, key, form in forms
        for suffix, more in (("", {}), ("-kvbf16", _BF16_CACHE))
    ]
