"""Tiny Hugging Face checkpoints with random weights, for tests of every layer above.

`make_checkpoint(dir, kind)` writes what `save_pretrained` writes for a real
model (config, safetensors, generation config) and a byte-level tokenizer with
a chat template, and returns the transformers model, the reference for logits.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
_MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n")]

# Odd on purpose: kernels that assume a multiple of a vector width fail.
VOCAB_SIZE = 3 + 256 + len(_MERGES)

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}" + EOS + "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

_BASE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    # 0.15 × sqrt(64) > 1: logits of order one, so that a wrong layer shows.
    "initializer_range": 0.15,
}


def _rope(rope_type: str, **fields: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": 10000.0, **fields}}


# kind → (transformers model type, fields that differ from _BASE)
_KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-mqa": ("llama", {"num_key_value_heads": 1}),
    "llama-mha": ("llama", {"num_key_value_heads": 4}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-bias": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-gelu": ("llama", {"hidden_act": "gelu_pytorch_tanh"}),
    "llama-head-dim": ("llama", {"head_dim": 32}),
    "rope-linear": ("llama", _rope("linear", factor=4.0)),
    "rope-llama3": (
        "llama",
        _rope(
            "llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=32,
        ),
    ),
    "rope-yarn": ("llama", _rope("yarn", factor=4.0, original_max_position_embeddings=64)),
    "rope-dynamic": ("llama", _rope("dynamic", factor=2.0)),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral-window": ("mistral", {"sliding_window": 8}),
    "qwen2": ("qwen2", {}),
    # Full attention in layer 0, a window of 8 in layers 1 and 2.
    "qwen2-window": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {"head_dim": 32}),
}
KINDS = tuple(_KINDS)


def make_checkpoint(
    directory: Path,
    kind: str,
    *,
    seed: int = 0,
    max_shard_size: str | int = "5GB",
    dtype: torch.dtype = torch.float32,
    **overrides: Any,
) -> Any:
    """Write a checkpoint of `kind` (one of KINDS) and return its transformers model.

    overrides:       fields of config.json
    max_shard_size:  as in save_pretrained; "100KB" gives several shards and an index
    dtype:           of the weights, in the file and in the model
    The same arguments write the same weights.  The global torch generator is left as it was.
    """
    model_type, fields = _KINDS[kind]
    config = transformers.AutoConfig.for_model(model_type, **{**_BASE, **fields, **overrides})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        _randomise_vectors(model)
    model = model.to(dtype).eval()
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    write_tokenizer(directory)
    return model


def _randomise_vectors(model: torch.nn.Module) -> None:
    """Give norms and biases values of their own: fresh ones (1 and 0) hide a missing term."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.3 if "bias" in name else 0.1)


def write_tokenizer(directory: Path) -> None:
    """Write tokenizer.json (byte-level BPE, VOCAB_SIZE tokens) and tokenizer_config.json."""
    byte_chars = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens = [BOS, EOS, PAD, *byte_chars, *(a + b for a, b in _MERGES)]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=_MERGES)
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens([BOS, EOS, PAD])
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 256,
        "chat_template": CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
