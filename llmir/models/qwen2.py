"""Qwen2 and Qwen2.5 (Yang et al., 2024): a Llama with biases on q, k and v."""

from __future__ import annotations

from llmir.config import ModelSpec
from llmir.errors import UnsupportedModelError
from llmir.models.decoder import DecoderLM, FormOf


def build(spec: ModelSpec, form_of: FormOf, max_len: int) -> DecoderLM:
    """The step of a Qwen2 model.  Raises UnsupportedModelError for what a Qwen2 model never has."""
    if not spec.qkv_bias or spec.qk_norm:
        raise UnsupportedModelError("a qwen2 model has QKV biases and no q/k norm")
    return DecoderLM(spec, form_of, max_len)
