"""Qwen3 (Yang et al., 2025): a Llama with RMS norms on each head of q and k."""

from __future__ import annotations

from llmir.config import ModelSpec
from llmir.errors import UnsupportedModelError
from llmir.models.decoder import DecoderLM, FormOf


def build(spec: ModelSpec, form_of: FormOf, max_len: int) -> DecoderLM:
    """The step of a Qwen3 model.  Raises UnsupportedModelError for what a Qwen3 model never has."""
    if not spec.qk_norm:
        raise UnsupportedModelError("a qwen3 model has q/k norms")
    return DecoderLM(spec, form_of, max_len)
