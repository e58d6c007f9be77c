"""Llama 2 and 3 (Touvron et al., 2023; Dubey et al., 2024), and SmolLM, which is a Llama."""

from __future__ import annotations

from llmir.config import ModelSpec
from llmir.errors import UnsupportedModelError
from llmir.models.decoder import DecoderLM, FormOf


def build(spec: ModelSpec, form_of: FormOf, max_len: int) -> DecoderLM:
    """The step of a Llama model.  Raises UnsupportedModelError for what a Llama model never has."""
    if spec.qk_norm:
        raise UnsupportedModelError("a llama model has no q/k norm; is this a qwen3?")
    return DecoderLM(spec, form_of, max_len)
