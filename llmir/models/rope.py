"""Cosine and sine tables of rotary position embedding, with every supported scaling.

Shape legend: P positions, F = head_dim / 2 frequencies.

RoPE (Su et al., 2021, arXiv:2104.09864) turns dims i and i + F of a head by
the angle position × inv_freq[i].  At position 8,000 one unit in the last place
of a float32 frequency moves an angle by half a thousandth, so which float32
numbers come out is part of a model's definition.  The code below therefore
does the float32 operations of `transformers`, one rounding for each of its
tensor operations.  Where torch writes `scalar / tensor` it multiplies by the
reciprocal, two roundings; `_scalar_over` is that.  The power alone is rounded
correctly, as torch's scalar path does: its vectorised power is one place off for
about one frequency in a hundred, and not the same ones on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from llmir.config import ModelSpec, RopeScaling
from llmir.errors import CorruptModelError, UnsupportedModelError

F32 = NDArray[np.float32]
_f32 = np.float32

# Rows per step: bounds the float64 intermediates of a million-position table to 8 MB.
_CHUNK = 8192


def rope_table(spec: ModelSpec, max_len: int) -> F32:
    """The table that `llm.rope` gathers rows of.

    Returns float32 [max_len, head_dim]; row p is cos[F] ++ sin[F] of position p's
    angles, times YaRN's attention factor where there is one.

    Raises UnsupportedModelError as `check_max_len`; CorruptModelError on an odd head_dim.
    """
    check_max_len(spec, max_len)
    scaling = spec.rope_scaling
    inv_freq = rope_inv_freq(spec)
    factor = _f32(rope_attention_factor(scaling))
    half = len(inv_freq)
    table = np.empty((max_len, spec.head_dim), dtype=np.float32)
    for start in range(0, max_len, _CHUNK):
        positions = np.arange(start, min(start + _CHUNK, max_len)).astype(np.float32)
        # The product rounds to float32, as the reference's does; cos and sin of that
        # angle are then taken in float64 so that only one more rounding follows.
        angles = (positions[:, None] * inv_freq[None, :]).astype(np.float64)
        rows = table[start : start + len(positions)]
        rows[:, :half] = np.cos(angles)
        rows[:, half:] = np.sin(angles)
    if factor != 1:
        table *= factor
    return table


def check_max_len(spec: ModelSpec, max_len: int) -> None:
    """Raise UnsupportedModelError where `max_len` passes the original context of a model
    with dynamic NTK scaling, whose frequencies then depend on the longest sequence in the batch.
    """
    if spec.rope_scaling.kind == "dynamic" and max_len > _original_context(spec):
        raise UnsupportedModelError(
            f"{spec.name}: dynamic NTK RoPE scaling is served within the original context of "
            f"{_original_context(spec)} positions only, and {max_len} were asked for; "
            "beyond it, frequencies depend on the longest sequence in a batch. "
            "Lower the maximum length"
        )


def rope_inv_freq(spec: ModelSpec) -> F32:
    """Radians per position of every dim pair, float32 [F], scaling applied."""
    if spec.head_dim <= 0 or spec.head_dim % 2:
        raise CorruptModelError(
            f"{spec.name}: RoPE turns pairs of dims, so head_dim must be even and "
            f"positive, not {spec.head_dim}"
        )
    return _INV_FREQ[spec.rope_scaling.kind](spec)


def rope_attention_factor(scaling: RopeScaling) -> float:
    """What cos and sin are multiplied by: 1 except for YaRN (section 3.4 of the paper)."""
    if scaling.kind != "yarn":
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return _yarn_mscale(scaling.factor, scaling.mscale) / _yarn_mscale(
            scaling.factor, scaling.mscale_all_dim
        )
    return _yarn_mscale(scaling.factor, 1.0)


def _yarn_mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _original_context(spec: ModelSpec) -> int:
    return spec.rope_scaling.original_max_position_embeddings or spec.max_position_embeddings


def _wavelengths(spec: ModelSpec) -> F32:
    """theta ** (2i / head_dim), the correctly rounded float32 of the float32 operands."""
    exponent = np.arange(0, spec.head_dim, 2).astype(np.float32) / _f32(spec.head_dim)
    theta = np.float64(_f32(spec.rope_theta))
    # numpy's own float32 power is off by one place for every third value.
    return np.power(theta, exponent.astype(np.float64)).astype(np.float32)


def _scalar_over(scalar: float, tensor: F32) -> F32:
    return (_f32(1) / tensor) * _f32(scalar)


def _plain(spec: ModelSpec) -> F32:
    return _f32(1) / _wavelengths(spec)


def _linear(spec: ModelSpec) -> F32:
    return _plain(spec) / _f32(spec.rope_scaling.factor)


def _llama3(spec: ModelSpec) -> F32:
    """Long wavelengths are stretched by `factor`, short ones kept, those between blended."""
    scaling = spec.rope_scaling
    context = _original_context(spec)
    factor, low, high = scaling.factor, scaling.low_freq_factor, scaling.high_freq_factor
    inv_freq = _plain(spec)
    wavelen = _scalar_over(2 * math.pi, inv_freq)
    is_long = wavelen > _f32(context / low)
    is_short = wavelen < _f32(context / high)
    smooth = (_scalar_over(context, wavelen) - _f32(low)) / _f32(high - low)
    blended = (_f32(1) - smooth) * inv_freq / _f32(factor) + smooth * inv_freq
    return np.where(is_long, inv_freq / _f32(factor), np.where(is_short, inv_freq, blended))


def _yarn(spec: ModelSpec) -> F32:
    """Peng et al., 2023, arXiv:2309.00071, section 3.2: interpolation ramped in over dims."""
    scaling = spec.rope_scaling
    waves = _wavelengths(spec)
    extrapolated = _f32(1) / waves
    interpolated = _f32(1) / (_f32(scaling.factor) * waves)

    low = _yarn_dim(spec, scaling.beta_fast)
    high = _yarn_dim(spec, scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    # The bounds are of head_dim although the ramp runs over F dims: what published
    # YaRN models were trained and evaluated with.
    low, high = max(low, 0), min(high, spec.head_dim - 1)
    if low == high:
        high += 0.001  # a step instead of a division by zero
    ramp = (np.arange(len(waves), dtype=np.float32) - _f32(low)) / _f32(high - low)
    keep = _f32(1) - np.clip(ramp, _f32(0), _f32(1))
    return interpolated * (_f32(1) - keep) + extrapolated * keep


def _yarn_dim(spec: ModelSpec, rotations: float) -> float:
    """The (real) dim pair that turns `rotations` times over the original context."""
    turns = _original_context(spec) / (rotations * 2 * math.pi)
    return (spec.head_dim * math.log(turns)) / (2 * math.log(spec.rope_theta))


_INV_FREQ: dict[str, Callable[[ModelSpec], F32]] = {
    "none": _plain,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "dynamic": _plain,
}
