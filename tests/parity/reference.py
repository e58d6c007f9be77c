"""What llmir's logits are compared with: transformers, in float32, with eager attention.

Shape legend: T tokens, V vocabulary, R rows of a matrix, C its columns, H heads, hd head dim.

Nothing here uses llmir: the weights of a GGUF file are dequantised by the gguf
package and put in Hugging Face's order by code of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from numpy.typing import NDArray

F32 = NDArray[np.float32]

# Options with which an artifact rounds nothing that its weights file does not: what it then
# computes is the reference's, but for the order of sums.
EXACT = {"activations": "f32", "kv_dtype": "f32"}

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


def logits(model: Any, token_ids: Sequence[int]) -> F32:
    """Teacher-forced logits, float32 [T, V]."""
    with torch.no_grad():
        return model(torch.tensor([list(token_ids)])).logits[0].float().numpy()


def from_checkpoint(directory: Path, **config: Any) -> Any:
    """A Hugging Face directory in float32, with other values for fields of its config."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", **config
    ).eval()


def from_weights(config: Any, weights: Mapping[str, F32]) -> Any:
    """A model of that config whose every parameter is one of `weights`."""
    model = transformers.AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager"
    )
    state = {name: torch.from_numpy(np.array(w, np.float32)) for name, w in weights.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    assert set(missing) <= tied, missing
    return model.eval()


def hf_name(gguf_name: str) -> str:
    """blk.3.attn_q.weight → model.layers.3.self_attn.q_proj.weight."""
    stem, _, kind = gguf_name.rpartition(".")
    if not stem.startswith("blk."):
        return f"{_MODEL[stem]}.{kind}"
    _, layer, part = stem.split(".")
    return f"model.layers.{layer}.{_LAYER[part]}.{kind}"


def half_rotated(w_RC: F32, num_heads: int) -> F32:
    """Rows of q or k as llama.cpp has them, where dims 2i and 2i + 1 of a head are turned
    together, in the order of transformers, where dims i and i + hd/2 are."""
    hd = len(w_RC) // num_heads
    in_head = [*range(0, hd, 2), *range(1, hd, 2)]
    return w_RC[[head * hd + row for head in range(num_heads) for row in in_head]]


def from_llama_gguf(path: Path) -> Any:
    """A GGUF file of the llama architecture as transformers' LlamaForCausalLM in float32."""
    reader = gguf.GGUFReader(path)

    def field(name: str) -> Any:
        return reader.fields[f"llama.{name}"].contents()

    num_heads, num_kv_heads = field("attention.head_count"), field("attention.head_count_kv")
    weights = {}
    for tensor in reader.tensors:
        w = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        heads = {"attn_q": num_heads, "attn_k": num_kv_heads}.get(tensor.name.split(".")[-2])
        weights[hf_name(tensor.name)] = half_rotated(w, heads) if heads else w
    config = transformers.LlamaConfig(
        vocab_size=len(weights["model.embed_tokens.weight"]),
        hidden_size=field("embedding_length"),
        intermediate_size=field("feed_forward_length"),
        num_hidden_layers=field("block_count"),
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        max_position_embeddings=field("context_length"),
        rms_norm_eps=field("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": field("rope.freq_base")},
        tie_word_embeddings="lm_head.weight" not in weights,
    )
    return from_weights(config, weights)
