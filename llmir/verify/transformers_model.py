"""A model's own file as a transformers model in float32, which llmir has no part in.

Shape legend: R rows of a matrix, C its columns, hd head dim.

A Hugging Face directory is what transformers reads.  The weights of a GGUF file are dequantised
by the gguf package and put in Hugging Face's order here: transformers' own way needs accelerate,
and leaves out tensors that it does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llmir.errors import ModelError
from llmir.runtime.base import F32

# GGUF name → Hugging Face name, of one layer and of the whole model
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_MODEL = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_INTERLEAVED = ("llama",)  # architectures whose q and k llama.cpp turns in pairs of neighbours


def from_directory(directory: Path, **config: Any) -> Any:
    """A Hugging Face directory in float32, with other values for fields of its config."""
    import torch
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=torch.float32,
        attn_implementation="eager",
        local_files_only=True,
        **config,
    ).eval()


def from_weights(config: Any, weights: Mapping[str, F32]) -> Any:
    """A model of that config whose every parameter is one of `weights`.

    Raises ModelError for a parameter that has none, or a weight that is none.
    """
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager"
    )
    state = {name: torch.from_numpy(np.array(w, np.float32)) for name, w in weights.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    if unexpected or set(missing) - tied:
        raise ModelError(
            f"the weights are not those of {config.model_type}: transformers wants "
            f"{sorted(set(missing) - tied)} and does not know {list(unexpected)}"
        )
    return model.eval()


def from_gguf(path: Path) -> Any:
    """A GGUF file of an architecture whose tensors are named above, in float32.

    Raises ModelError for one with other tensors, as Llama 3's own RoPE frequencies are: the
    reference would not be the model.
    """
    import gguf
    import transformers

    config = transformers.AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    reader = gguf.GGUFReader(path)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    architecture = reader.fields["general.architecture"].contents()
    weights = {}
    for tensor in reader.tensors:
        w = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        part = tensor.name.split(".")[-2]
        if part in heads and architecture in _INTERLEAVED:
            w = half_rotated(w, heads[part])
        weights[hf_name(tensor.name)] = w
    config.tie_word_embeddings = "lm_head.weight" not in weights
    return from_weights(config, weights)


def hf_name(gguf_name: str) -> str:
    """blk.3.attn_q.weight → model.layers.3.self_attn.q_proj.weight.

    Raises ModelError for a tensor that is not known.
    """
    stem, _, kind = gguf_name.rpartition(".")
    block, _, rest = stem.partition(".")
    layer, _, part = rest.partition(".")
    if block == "blk" and part in _LAYER:
        return f"model.layers.{layer}.{_LAYER[part]}.{kind}"
    if stem in _MODEL:
        return f"{_MODEL[stem]}.{kind}"
    raise ModelError(
        f"tensor {gguf_name!r} of the file is not known to the reference: give it the model as a "
        "Hugging Face directory"
    )


def half_rotated(w_RC: F32, num_heads: int) -> F32:
    """Rows of q or k as llama.cpp has them, where dims 2i and 2i + 1 of a head are turned
    together, in the order of transformers, where dims i and i + hd/2 are."""
    hd = len(w_RC) // num_heads
    in_head = [*range(0, hd, 2), *range(1, hd, 2)]
    return w_RC[[head * hd + row for head in range(num_heads) for row in in_head]]
