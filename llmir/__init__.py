"""llmir compiles large language models with IREE and serves them.

    import llmir

    artifact = llmir.compile("model.gguf", target="cpu", output="model.llmir")
    llm = llmir.LLM(artifact)
    llm.chat([{"role": "user", "content": "What is the capital of France?"}])

The names below are the public ones; they are loaded when first used, so that
importing llmir costs nothing and serving never loads the compiler.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmir.api import LLM, AsyncLLM, compile, load
    from llmir.artifact import Artifact
    from llmir.engine import (
        CompletionOutput,
        Logprob,
        RequestOutput,
        SamplingParams,
        StructuredOutputsParams,
    )
    from llmir.errors import LlmirError

__version__ = "0.1.0"

_HOMES = {
    "LLM": "llmir.api",
    "AsyncLLM": "llmir.api",
    "Artifact": "llmir.artifact",
    "CompletionOutput": "llmir.engine",
    "LlmirError": "llmir.errors",
    "Logprob": "llmir.engine",
    "RequestOutput": "llmir.engine",
    "SamplingParams": "llmir.engine",
    "StructuredOutputsParams": "llmir.engine",
    "compile": "llmir.api",
    "load": "llmir.api",
}
__all__ = [
    "LLM",
    "Artifact",
    "AsyncLLM",
    "CompletionOutput",
    "LlmirError",
    "Logprob",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutputsParams",
    "compile",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'llmir' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
