"""Mistral 7B (Jiang et al., 2023): a Llama whose layers may attend to a sliding window."""

from __future__ import annotations

from llmir.config import ModelSpec
from llmir.errors import UnsupportedModelError
from llmir.models.decoder import DecoderLM, FormOf


def build(spec: ModelSpec, form_of: FormOf, max_len: int) -> DecoderLM:
    """The step of a Mistral model.  Raises UnsupportedModelError for what Mistral never has."""
    if spec.qkv_bias or spec.qk_norm:
        raise UnsupportedModelError("a mistral model has neither QKV biases nor q/k norm")
    return DecoderLM(spec, form_of, max_len)
