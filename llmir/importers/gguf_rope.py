"""Rotary scaling from GGUF metadata and from the `rope_freqs.weight` tensor.

llama.cpp states linear and YaRN scaling as metadata.  Llama 3.1's scaling it
states only by its result: a tensor [head_dim / 2] by which each frequency is
divided.  llmir wants the parameters, so they are found again: a formula with
four parameters that reproduces every element to float32's precision.
"""

from __future__ import annotations

import math

import numpy as np

from llmir.config import RopeScaling
from llmir.errors import CorruptModelError, UnsupportedModelError
from llmir.formats.base import F32
from llmir.importers.gguf_metadata import Metadata, describe

KNOWN_TYPES = ("linear", "none", "yarn")

# Llama 3.1 (8B to 405B) has factor 8 and Llama 3.2 (1B, 3B) factor 32; both were trained on
# 8192 positions with low 1 and high 4.  Fine-tunes keep them, some with another factor.
_LLAMA3_LOW, _LLAMA3_HIGH = 1.0, 4.0
_LLAMA3_FACTORS = (8.0, 32.0)
_LLAMA3_ORIGINAL = 8192
# float32 rounding of the factors, with room for converters that compute in float32.
_FACTOR_TOLERANCE = 1e-4


def read_rope_scaling(
    meta: Metadata, arch: str, head_dim: int, theta: float, freq_factors: F32 | None
) -> RopeScaling:
    """The scaling that the metadata of architecture `arch` asks for.

    Args:
        freq_factors: float32 [head_dim / 2], the file's `rope_freqs.weight`, if it has one.

    Raises:
        UnsupportedModelError: a scaling that llmir does not have.
        CorruptModelError: values that make no sense.
    """
    prefix = f"{arch}.rope.scaling"
    factor_key = f"{prefix}.factor"
    if factor_key not in meta and f"{arch}.rope.scale_linear" in meta:
        factor_key = f"{arch}.rope.scale_linear"  # before August 2023
    factor = meta.get_float(factor_key) or 1.0  # llama.cpp takes 0 as "not set"
    if factor < 0:
        raise CorruptModelError(f"{meta.source}: {factor_key} should be positive, but is {factor}")
    # llama.cpp scales linearly where a factor comes without a type.
    kind = meta.get_str(f"{prefix}.type") or "linear"
    if kind not in KNOWN_TYPES:
        raise UnsupportedModelError(
            f"{meta.source}: {prefix}.type is {describe(kind)}; "
            f"known types: {', '.join(KNOWN_TYPES)}"
        )
    scaled = kind == "yarn" or (kind == "linear" and factor != 1.0)
    if freq_factors is not None and not np.allclose(freq_factors, 1.0, rtol=0, atol=1e-6):
        if scaled:
            raise UnsupportedModelError(
                f"{meta.source} has both rope_freqs.weight and {prefix}.type {kind!r}; "
                f"llmir supports one of them"
            )
        return llama3_scaling(freq_factors, head_dim, theta, meta.source)
    if not scaled:
        return RopeScaling()
    if kind == "linear":
        return RopeScaling(kind="linear", factor=factor)
    return _yarn(meta, arch, factor)


def _yarn(meta: Metadata, arch: str, factor: float) -> RopeScaling:
    prefix = f"{arch}.rope.scaling"
    for key in ("yarn_ext_factor", "yarn_attn_factor"):
        value = meta.get_float(f"{prefix}.{key}")
        if value not in (None, -1.0, 1.0):  # -1 is llama.cpp's "the default", 1
            raise UnsupportedModelError(
                f"{meta.source}: {prefix}.{key} is {value}; llmir supports 1"
            )
    # ggml multiplies sin and cos by attn_factor × (0.1 ln(factor) + 1).
    multiplier = meta.get_float(f"{prefix}.attn_factor") or 1.0
    attention = None
    if multiplier != 1.0:
        attention = multiplier * (0.1 * math.log(factor) + 1.0)
    return RopeScaling(
        kind="yarn",
        factor=factor,
        original_max_position_embeddings=meta.size(
            f"{prefix}.original_context_length", meta.size(f"{arch}.context_length")
        ),
        beta_fast=_or_default(meta.get_float(f"{prefix}.yarn_beta_fast"), 32.0),
        beta_slow=_or_default(meta.get_float(f"{prefix}.yarn_beta_slow"), 1.0),
        attention_factor=attention,
    )


def _or_default(value: float | None, default: float) -> float:
    return default if value is None else value


def llama3_scaling(freq_factors: F32, head_dim: int, theta: float, source: str) -> RopeScaling:
    """The Llama 3.1 parameters whose formula gives `freq_factors`.

    Raises UnsupportedModelError if none of those tried does.
    """
    # A dimension slow enough is divided by the whole factor, so the largest element is it.
    largest = float(freq_factors.max())
    for factor in (largest, *_LLAMA3_FACTORS):
        if not (math.isfinite(factor) and factor > 1.0):
            continue
        factor = float(round(factor)) if abs(factor - round(factor)) < 1e-3 else factor
        scaling = RopeScaling(
            kind="llama3",
            factor=factor,
            original_max_position_embeddings=_LLAMA3_ORIGINAL,
            low_freq_factor=_LLAMA3_LOW,
            high_freq_factor=_LLAMA3_HIGH,
        )
        expected = llama3_freq_factors(scaling, head_dim, theta)
        if np.allclose(freq_factors, expected, rtol=_FACTOR_TOLERANCE, atol=0):
            return scaling
    raise UnsupportedModelError(
        f"{source}: rope_freqs.weight (largest element {largest:g}) is not Llama 3.1's rotary "
        f"scaling with low_freq_factor {_LLAMA3_LOW:g}, high_freq_factor {_LLAMA3_HIGH:g} and "
        f"{_LLAMA3_ORIGINAL} original positions, the only frequency factors llmir supports"
    )


def llama3_freq_factors(scaling: RopeScaling, head_dim: int, theta: float) -> F32:
    """float32 [head_dim / 2]: what Llama 3.1's scaling divides each frequency by.

    With wavelength λ = 2π θ^(2i/d), context C and smoothness s = (C/λ − low) / (high − low):
    1 where λ < C/high, factor where λ > C/low, 1 / ((1 − s)/factor + s) between.
    (github.com/meta-llama/llama-models, apply_scaling.)
    """
    assert scaling.original_max_position_embeddings is not None
    with np.errstate(over="ignore"):  # an absurd theta: an infinite wavelength is right
        wavelength = 2 * np.pi * theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    turns = scaling.original_max_position_embeddings / wavelength
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - smooth) / scaling.factor + smooth)).astype(np.float32)
