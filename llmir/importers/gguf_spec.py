"""GGUF metadata → ModelSpec.

Every architecture has its own prefix, `llama.block_count`, `qwen2.block_count`;
the keys after it mean the same.  A key that would change what the model computes
and that llmir does not implement is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from llmir.config import ModelSpec
from llmir.errors import CorruptModelError, UnsupportedModelError
from llmir.formats.base import F32, Weight
from llmir.importers.gguf_metadata import Metadata, describe
from llmir.importers.gguf_rope import read_rope_scaling


@dataclass(frozen=True, slots=True, kw_only=True)
class GGUFArchitecture:
    """How the files of one `general.architecture` differ from the others'.

    biases:            whether projections may have biases: "any" (those the file has), "qkv"
                       (q, k and v always), "none"
    qk_norm:           whether q and k are normalised per head
    interleaved_rope:  whether q and k rows are permuted so that dims 2i and 2i+1 are a pair
    windows:           whether attention.sliding_window holds for every layer
    """

    name: str
    biases: str
    qk_norm: bool
    interleaved_rope: bool
    windows: bool


ARCHITECTURES = {
    arch.name: arch
    for arch in (
        # Llama 2 and 3, SmolLM, and Mistral.
        GGUFArchitecture(
            name="llama", biases="any", qk_norm=False, interleaved_rope=True, windows=True
        ),
        GGUFArchitecture(
            name="qwen2", biases="qkv", qk_norm=False, interleaved_rope=False, windows=False
        ),
        GGUFArchitecture(
            name="qwen3", biases="none", qk_norm=True, interleaved_rope=False, windows=False
        ),
    )
}

# Keys that change what a model computes, each with the values that mean "not used".
_REFUSED: Mapping[str, tuple[float | bool, ...]] = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
    "embedding_scale": (0, 1),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "use_parallel_residual": (False,),
    "full_attention_interval": (0,),
    "attention.causal": (True,),
    "attention.max_alibi_bias": (0,),
    "attention.clamp_kqv": (0,),
    "attention.output_scale": (0, 1),
    "attention.temperature_scale": (0,),
    "attention.shared_kv_layers": (0,),
    "attention.q_lora_rank": (0,),
    "attention.kv_lora_rank": (0,),
    "attention.sliding_window_pattern": (0, False),
    "rope.dimension_sections": (),
    "rope.scaling.alpha": (0, 1),
    "rope.scaling.yarn_log_multiplier": (0,),
}


def read_architecture(meta: Metadata) -> GGUFArchitecture:
    """Raises UnsupportedModelError, listing the known, if the file has another."""
    name = meta.need_str("general.architecture")
    if name not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"{meta.source} has the architecture {describe(name)}; "
            f"known architectures: {', '.join(sorted(ARCHITECTURES))}"
        )
    return ARCHITECTURES[name]


def read_spec(
    meta: Metadata, arch: GGUFArchitecture, weights: Mapping[str, Weight], stem: str
) -> ModelSpec:
    """The spec of a model.

    Args:
        weights: by their names in the file; asked only which of them there are, for the
            vocabulary's size where no key has it, and for `rope_freqs.weight`.
        stem: the model's name if the metadata has none.

    Raises:
        CorruptModelError: keys are missing, of the wrong type, or contradict each other.
        UnsupportedModelError: the model needs something that llmir does not have.
    """
    prefix = arch.name
    num_layers = meta.size(f"{prefix}.block_count")
    if num_layers > len(weights):
        raise CorruptModelError(
            f"{meta.source}: {prefix}.block_count is {num_layers}, but the file has "
            f"{len(weights)} tensors in all"
        )
    hidden_size = meta.size(f"{prefix}.embedding_length")
    num_heads, num_kv_heads, head_dim = _read_heads(meta, prefix, num_layers, hidden_size)
    _refuse_unsupported(meta, prefix, head_dim)
    context = meta.size(f"{prefix}.context_length")
    theta = meta.get_float(f"{prefix}.rope.freq_base") or 10000.0
    eps = meta.need_float(f"{prefix}.attention.layer_norm_rms_epsilon")
    if theta <= 0 or eps < 0:
        raise CorruptModelError(
            f"{meta.source}: expected rope.freq_base and layer_norm_rms_epsilon to be positive, "
            f"but they are {theta} and {eps}"
        )
    window = _read_window(meta, arch, context)
    return ModelSpec(
        # A Mistral file says llama; what sets the architecture apart is its window.
        architecture="mistral" if window is not None else arch.name,
        name=meta.get_str("general.name") or stem,
        vocab_size=_read_vocab_size(meta, prefix, weights),
        hidden_size=hidden_size,
        intermediate_size=meta.uniform_size(f"{prefix}.feed_forward_length", num_layers),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_position_embeddings=context,
        rms_norm_eps=eps,
        rope_theta=theta,
        rope_scaling=read_rope_scaling(
            meta, prefix, head_dim, theta, _freq_factors(weights, head_dim, meta.source)
        ),
        sliding_windows=(window,) * num_layers,
        tie_word_embeddings="output.weight" not in weights,
        qkv_bias=arch.biases == "qkv" or (arch.biases == "any" and "blk.0.attn_q.bias" in weights),
        output_bias=arch.biases == "any" and "blk.0.attn_output.bias" in weights,
        mlp_bias=arch.biases == "any" and "blk.0.ffn_gate.bias" in weights,
        qk_norm=arch.qk_norm,
    )


def _read_heads(
    meta: Metadata, prefix: str, num_layers: int, hidden_size: int
) -> tuple[int, int, int]:
    """num_heads, num_kv_heads, head_dim."""
    num_heads = meta.uniform_size(f"{prefix}.attention.head_count", num_layers)
    num_kv_heads = meta.uniform_size(f"{prefix}.attention.head_count_kv", num_layers, num_heads)
    if num_heads % num_kv_heads:
        raise CorruptModelError(
            f"{meta.source}: {prefix}.attention.head_count {num_heads} should be a multiple of "
            f"head_count_kv {num_kv_heads}"
        )
    key = f"{prefix}.attention.key_length"
    if key not in meta and hidden_size % num_heads:
        raise CorruptModelError(
            f"{meta.source}: {prefix}.embedding_length {hidden_size} should be a multiple of "
            f"attention.head_count {num_heads}, as there is no {key}"
        )
    head_dim = meta.size(key, hidden_size // num_heads)
    if head_dim % 2:
        raise CorruptModelError(
            f"{meta.source}: rotary embedding needs an even head size, but it is {head_dim}"
        )
    return num_heads, num_kv_heads, head_dim


def _refuse_unsupported(meta: Metadata, prefix: str, head_dim: int) -> None:
    for key, unused in _REFUSED.items():
        value = meta.values.get(f"{prefix}.{key}")
        if value is None or (isinstance(value, int | float) and value in unused):
            continue
        raise UnsupportedModelError(
            f"{meta.source}: {prefix}.{key} is {describe(value)}, which llmir does not support"
        )
    for key in ("rope.dimension_count", "attention.value_length"):
        found = meta.size(f"{prefix}.{key}", head_dim)
        if found != head_dim:
            raise UnsupportedModelError(
                f"{meta.source}: {prefix}.{key} is {found}; llmir supports only the head size, "
                f"{head_dim}"
            )
    scale = meta.get_float(f"{prefix}.attention.scale") or 0.0
    if scale and abs(scale * head_dim**0.5 - 1.0) > 1e-4:
        raise UnsupportedModelError(
            f"{meta.source}: {prefix}.attention.scale is {scale}; llmir supports only "
            f"1/sqrt(head size), {head_dim**-0.5:g}"
        )


def _read_window(meta: Metadata, arch: GGUFArchitecture, context: int) -> int | None:
    """Positions that every layer attends to; None where that is the whole context."""
    key = f"{arch.name}.attention.sliding_window"
    if not meta.get_int(key):  # 0 is how some converters write "none"
        return None
    window = meta.size(key)
    if window >= context:
        return None
    if not arch.windows:
        raise UnsupportedModelError(
            f"{meta.source}: {key} is {window}; {arch.name} has such windows in some layers only, "
            f"and the file does not say in which"
        )
    return window


def _read_vocab_size(meta: Metadata, prefix: str, weights: Mapping[str, Weight]) -> int:
    key = f"{prefix}.vocab_size"
    if key in meta:
        return meta.size(key)
    tokens = meta.get_strings("tokenizer.ggml.tokens")
    if tokens:
        return len(tokens)
    if "token_embd.weight" in weights:
        return weights["token_embd.weight"].shape[0]
    raise meta.missing(key, "an integer, or tokenizer.ggml.tokens")


def _freq_factors(weights: Mapping[str, Weight], head_dim: int, source: str) -> F32 | None:
    """`rope_freqs.weight`, float32 [head_dim / 2]."""
    weight = weights.get("rope_freqs.weight")
    if weight is None:
        return None
    if weight.shape != (head_dim // 2,) or not weight.format.is_float:
        raise CorruptModelError(
            f"{source}: rope_freqs.weight should be floats of shape {[head_dim // 2]}, but is "
            f"{weight.format.name} of shape {list(weight.shape)}"
        )
    factors = weight.dequantize()
    if not np.isfinite(factors).all():
        raise CorruptModelError(f"{source}: rope_freqs.weight has elements that are not finite")
    return factors
