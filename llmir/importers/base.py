"""What every importer returns: a spec, weights under canonical names, and a tokenizer.

Canonical weight names are those of Hugging Face's Llama, so that every
architecture's torch module and every importer speak of the same things:

    model.embed_tokens.weight                              [V, D]
    model.layers.{i}.input_layernorm.weight                [D]
    model.layers.{i}.self_attn.{q,k,v}_proj.{weight,bias}  [H*hd, D], [H*hd]
    model.layers.{i}.self_attn.o_proj.{weight,bias}        [D, H*hd], [D]
    model.layers.{i}.self_attn.{q,k}_norm.weight           [hd]          (Qwen3)
    model.layers.{i}.post_attention_layernorm.weight       [D]
    model.layers.{i}.mlp.{gate,up}_proj.{weight,bias}      [F, D], [F]
    model.layers.{i}.mlp.down_proj.{weight,bias}           [D, F], [D]
    model.norm.weight                                      [D]
    lm_head.weight                                         [V, D]        (untied only)

RoPE is always in the half-rotated form (dims i and i + hd/2 are a pair).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llmir.config import ModelSpec
from llmir.formats.base import Weight


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFiles:
    """The files that make `AutoTokenizer.from_pretrained(artifact)` work, as parsed JSON.

    tokenizer_json:          tokenizer.json, as text (the `tokenizers` library's own format)
    tokenizer_config:        tokenizer_config.json: special tokens, add_bos_token, chat_template
    generation_config:       generation_config.json: eos_token_id (int or list), bos_token_id,
                             temperature, top_k, top_p, … ; {} when the model has none
    """

    tokenizer_json: str
    tokenizer_config: Mapping[str, Any] = field(default_factory=dict)
    generation_config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedModel:
    """A model as read from disk; weights are views of mapped files.

    spec:       see ModelSpec
    weights:    canonical name → Weight
    tokenizer:  None where the source carries none (prompts must then be token ids)
    source:     what to call the source in messages and the manifest: a file or directory name
    files:      the files read, for the cache key (name, size, mtime_ns or digest is the caller's)
    """

    spec: ModelSpec
    weights: Mapping[str, Weight]
    tokenizer: TokenizerFiles | None
    source: str
    files: tuple[str, ...] = ()
