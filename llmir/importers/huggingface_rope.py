"""RoPE fields of config.json, in every spelling transformers has written.

transformers 5:   rope_parameters: {rope_type, rope_theta, factor, …}
transformers 4:   rope_theta, rope_scaling: {rope_type | type, factor, …}
older 4:          rope_theta at the top, rope_scaling: {type, factor} or null
"""

from __future__ import annotations

from collections.abc import Callable

from llmir.config import RopeScaling
from llmir.errors import UnsupportedModelError
from llmir.importers.huggingface_json import Fields

_DEFAULT_THETA = 10000.0


def read_rope(config: Fields, max_position_embeddings: int) -> tuple[float, RopeScaling]:
    """(rope_theta, scaling) of a config.  Raises UnsupportedModelError, CorruptModelError."""
    # An empty rope_scaling does not hide rope_parameters.
    key = "rope_scaling" if config.data.get("rope_scaling") else "rope_parameters"
    rope = config.object(key)
    nested = sorted(name for name, value in rope.data.items() if isinstance(value, dict))
    if nested:
        raise UnsupportedModelError(
            f"{rope.where}: RoPE that differs between layer types "
            f"({', '.join(nested)}) is not supported"
        )
    for fields in (rope, config):
        if fields.data.get("partial_rotary_factor") not in (None, 1):
            raise UnsupportedModelError(
                f"{fields.where}: partial_rotary_factor "
                f"{fields.data['partial_rotary_factor']!r} is not supported, only 1.0"
            )
    has_own_theta = rope.data.get("rope_theta") is not None
    theta = (rope if has_own_theta else config).number("rope_theta", _DEFAULT_THETA, above=1.0)

    kind = rope.text("rope_type", rope.text("type", "default"))
    if kind not in _READERS:
        raise UnsupportedModelError(
            f"{rope.where}: RoPE scaling {kind!r} is not supported; "
            f"known: {', '.join(sorted(_READERS))}"
        )
    return theta, _READERS[kind](config, rope, max_position_embeddings)


def _original_context(config: Fields, rope: Fields, max_position_embeddings: int) -> int:
    """The context before stretching; a field outside the rope object wins, as in Phi-3."""
    key = "original_max_position_embeddings"
    fields = config if config.data.get(key) is not None else rope
    return fields.size(key, max_position_embeddings)


def _none(config: Fields, rope: Fields, max_len: int) -> RopeScaling:
    return RopeScaling()


def _linear(config: Fields, rope: Fields, max_len: int) -> RopeScaling:
    return RopeScaling(kind="linear", factor=rope.number("factor"))


def _dynamic(config: Fields, rope: Fields, max_len: int) -> RopeScaling:
    # max_position_embeddings is the original context here: the reference scales
    # sequences beyond it and reads no other field.
    return RopeScaling(
        kind="dynamic",
        factor=rope.number("factor"),
        original_max_position_embeddings=max_len,
    )


def _llama3(config: Fields, rope: Fields, max_len: int) -> RopeScaling:
    low = rope.number("low_freq_factor")
    high = rope.number("high_freq_factor")
    if high <= low:
        raise rope.error(f"high_freq_factor {high} must be greater than low_freq_factor {low}")
    return RopeScaling(
        kind="llama3",
        factor=rope.number("factor"),
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position_embeddings=_original_context(config, rope, max_len),
    )


def _yarn(config: Fields, rope: Fields, max_len: int) -> RopeScaling:
    original = _original_context(config, rope, max_len)
    if "factor" not in rope.data:
        raise rope.error("factor is missing")
    beta_fast = rope.optional_number("beta_fast") or 32.0
    beta_slow = rope.optional_number("beta_slow") or 1.0
    if beta_fast < beta_slow:
        raise rope.error(f"beta_fast {beta_fast} must not be less than beta_slow {beta_slow}")
    return RopeScaling(
        kind="yarn",
        # null means the ratio of the two contexts (DeepSeek-V3 writes it so)
        factor=rope.number("factor", max_len / original),
        original_max_position_embeddings=original,
        beta_fast=beta_fast,
        beta_slow=beta_slow,
        attention_factor=rope.optional_number("attention_factor"),
        mscale=rope.optional_number("mscale"),
        mscale_all_dim=rope.optional_number("mscale_all_dim"),
        truncate=rope.flag("truncate", True),
    )


_READERS: dict[str, Callable[[Fields, Fields, int], RopeScaling]] = {
    "default": _none,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
}
