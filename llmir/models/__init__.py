"""The architectures: names, and the torch module of each.

Floor 2.  Importing this package imports no torch; building a model does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from llmir.config import ModelSpec
from llmir.errors import UnsupportedModelError

if TYPE_CHECKING:
    from llmir.models.decoder import DecoderLM, FormOf

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")


def build_model(spec: ModelSpec, form_of: FormOf, max_len: int) -> DecoderLM:
    """The torch module of a spec's architecture, without weights.

    Args:
        form_of: canonical matrix name → how the artifact stores it
        max_len: positions in the RoPE table
    Raises UnsupportedModelError listing the architectures there are.
    """
    if spec.architecture not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"unknown architecture {spec.architecture!r}; known: {', '.join(ARCHITECTURES)}"
        )
    module = import_module(f"llmir.models.{spec.architecture}")
    model: DecoderLM = module.build(spec, form_of, max_len)
    return model
