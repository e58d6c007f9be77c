"""config.json → ModelSpec, for the architectures llmir has.

Where a field is absent the value is the one `transformers` would use, which
differs between model types; `_Family` holds those.  A field that changes
results in a way llmir does not have is refused by name.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from llmir.config import ModelSpec
from llmir.errors import UnsupportedModelError
from llmir.importers.huggingface_json import Fields
from llmir.importers.huggingface_rope import read_rope

# Far above any published model; a lying count then costs nothing.
_MAX_LAYERS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    """A model type: its class name and transformers' defaults for absent fields.

    num_kv_heads, head_dim:  None means derived (as many as heads; hidden_size / heads)
    bos_token_id, eos_token_id:  None means the model type has no default
    """

    class_name: str
    max_position_embeddings: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None


_FAMILIES = {
    "llama": _Family(
        class_name="LlamaForCausalLM",
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "mistral": _Family(
        class_name="MistralForCausalLM",
        max_position_embeddings=131072,
        num_kv_heads=8,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "qwen2": _Family(class_name="Qwen2ForCausalLM", max_position_embeddings=32768, num_kv_heads=32),
    "qwen3": _Family(
        class_name="Qwen3ForCausalLM",
        max_position_embeddings=32768,
        num_kv_heads=32,
        head_dim=128,
    ),
}

_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_pytorch_tanh"}
"""hidden_act in config.json and of a ModelSpec."""


def read_config(config: Fields, name: str) -> ModelSpec:
    """The spec that config.json describes.

    Raises UnsupportedModelError where it needs what llmir has not, CorruptModelError
    where a field is missing, of a wrong type, or contradicts another.
    """
    kind = model_type(config)
    family = _FAMILIES[kind]
    _refuse_quantized(config)
    activation = config.text("hidden_act", "silu")
    if activation not in _ACTIVATIONS:
        raise UnsupportedModelError(
            f"{config.where}: hidden_act {activation!r} is not supported; "
            f"known: {', '.join(_ACTIVATIONS)}"
        )
    num_layers = config.size("num_hidden_layers", at_most=_MAX_LAYERS)
    max_len = config.size("max_position_embeddings", family.max_position_embeddings)
    theta, scaling = read_rope(config, max_len)
    num_heads, num_kv_heads, head_dim = _heads(config, family)
    has_attention_bias = kind in ("llama", "qwen3") and config.flag("attention_bias", False)
    return ModelSpec(
        architecture=kind,
        name=name,
        vocab_size=config.size("vocab_size"),
        hidden_size=config.size("hidden_size"),
        intermediate_size=config.size("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_position_embeddings=max_len,
        rms_norm_eps=config.number("rms_norm_eps", 1e-6, allow_equal=True),
        rope_theta=theta,
        rope_scaling=scaling,
        sliding_windows=_sliding_windows(config, kind, num_layers),
        tie_word_embeddings=config.flag("tie_word_embeddings", False),
        qkv_bias=kind == "qwen2" or has_attention_bias,
        output_bias=has_attention_bias,
        mlp_bias=kind == "llama" and config.flag("mlp_bias", False),
        qk_norm=kind == "qwen3",
        hidden_act=_ACTIVATIONS[activation],
    )


def default_special_ids(config: Fields) -> dict[str, int | None]:
    """bos_token_id and eos_token_id that the model type has when config.json names none."""
    family = _FAMILIES[model_type(config)]
    return {"bos_token_id": family.bos_token_id, "eos_token_id": family.eos_token_id}


def model_type(config: Fields) -> str:
    """A key of `_FAMILIES`, from "model_type" and "architectures", which must agree."""
    by_class = {family.class_name: kind for kind, family in _FAMILIES.items()}
    classes = config.strings("architectures") or ()
    kind = config.text("model_type", "")
    for class_name in classes:
        if class_name not in by_class:
            raise UnsupportedModelError(
                f"{config.where}: architecture {class_name!r} is not supported; "
                f"known: {', '.join(sorted(by_class))}"
            )
    if kind and kind not in _FAMILIES:
        raise UnsupportedModelError(
            f"{config.where}: model_type {kind!r} is not supported; "
            f"known: {', '.join(sorted(_FAMILIES))}"
        )
    named = {by_class[class_name] for class_name in classes} | ({kind} if kind else set())
    if not named:
        raise config.error(
            "neither architectures nor model_type is there; it is not the config of a model"
        )
    if len(named) > 1:
        raise config.error(f"architectures {list(classes)} contradicts model_type {kind!r}")
    return named.pop()


def _refuse_quantized(config: Fields) -> None:
    for key in ("quantization_config", "compression_config"):
        value = config.data.get(key)
        if value:
            method = value.get("quant_method") if isinstance(value, dict) else value
            raise UnsupportedModelError(
                f"{config.where}: {key} ({method or json.dumps(value)[:80]}) is not supported; "
                "use the unquantised checkpoint and quantise when compiling, or a GGUF file"
            )


def _heads(config: Fields, family: _Family) -> tuple[int, int, int]:
    """(num_heads, num_kv_heads, head_dim)."""
    hidden_size = config.size("hidden_size")
    num_heads = config.size("num_attention_heads")
    # Absent takes the model type's default; null always means one per query head.
    is_given = "num_key_value_heads" in config.data
    kv_default = num_heads if is_given or family.num_kv_heads is None else family.num_kv_heads
    num_kv_heads = config.size("num_key_value_heads", kv_default)
    if num_heads % num_kv_heads:
        raise config.error(
            f"num_attention_heads {num_heads} is not a multiple of "
            f"num_key_value_heads {num_kv_heads}"
        )
    head_dim = config.optional_size("head_dim") or family.head_dim
    if head_dim is None:
        if hidden_size % num_heads:
            raise config.error(
                f"hidden_size {hidden_size} is not a multiple of num_attention_heads "
                f"{num_heads}, and there is no head_dim"
            )
        head_dim = hidden_size // num_heads
    if head_dim % 2:
        raise config.error(f"head_dim {head_dim} is odd; RoPE turns pairs of dims")
    return num_heads, num_kv_heads, head_dim


def _sliding_windows(config: Fields, kind: str, num_layers: int) -> tuple[int | None, ...]:
    """Positions that each layer attends to; None is full attention."""
    layer_types = _layer_types(config, num_layers)
    if kind in ("qwen2", "qwen3"):
        window = None
        if config.flag("use_sliding_window", False):
            window = _window(config)
        if layer_types is None:
            # The first max_window_layers layers are the ones with full attention.
            first = config.data.get("max_window_layers", 28)
            if type(first) is not int or first < 0:
                raise config.error(f"max_window_layers must be an integer from 0, not {first!r}")
            return tuple(window if i >= first else None for i in range(num_layers))
        if window is None and "sliding_attention" in layer_types:
            raise config.error("layer_types has sliding_attention, but use_sliding_window is off")
        return tuple(window if t == "sliding_attention" else None for t in layer_types)

    window = _window(config) if kind == "mistral" else None
    expected = "full_attention" if window is None else "sliding_attention"
    if layer_types is not None and set(layer_types) != {expected}:
        raise UnsupportedModelError(
            f"{config.where}: layer_types other than {expected} in every layer are not "
            f"supported for {kind}"
        )
    return (window,) * num_layers


def _window(config: Fields) -> int | None:
    """sliding_window: null is none, absent is transformers' default."""
    return config.optional_size("sliding_window") if "sliding_window" in config.data else 4096


def _layer_types(config: Fields, num_layers: int) -> tuple[str, ...] | None:
    layer_types = config.strings("layer_types")
    if layer_types is None:
        return None
    if len(layer_types) != num_layers:
        raise config.error(
            f"layer_types has {len(layer_types)} entries, num_hidden_layers is {num_layers}"
        )
    known = ("full_attention", "sliding_attention")
    for layer_type in layer_types:
        if layer_type not in known:
            raise UnsupportedModelError(
                f"{config.where}: layer type {layer_type!r} is not supported; "
                f"known: {', '.join(known)}"
            )
    return layer_types
