"""Float dtypes: f32, f16, bf16.  All are little-endian, one element per block.

bf16 is the upper half of a float32: widening is a shift, and narrowing rounds
to nearest, ties to even.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llmir.formats.base import F32, U8, Format


def _from_f32(blocks: U8) -> F32:
    # A copy even where a view would do: the caller gets an aligned, writable array from
    # every format, and never a window into a mapped file.
    return blocks.view("<f4").astype(np.float32, copy=True)


def _from_f16(blocks: U8) -> F32:
    return blocks.view("<f2").astype(np.float32)


def _from_bf16(blocks: U8) -> F32:
    bits = blocks.view("<u2").astype(np.uint32)
    bits <<= np.uint32(16)
    return bits.view(np.float32)


def to_bf16(values: F32) -> NDArray[np.uint16]:
    """float32 of any shape → the bits of bf16, rounded to nearest, ties to even.

    A NaN stays a NaN with its sign: its quiet bit is set, since the payload bits
    that make it one may all be among those cut off.  Overflow rounds to infinity.
    """
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    upper = bits >> np.uint32(16)
    # Adding just under half, and one more if the kept part is odd, carries into the kept
    # part exactly when round-half-even goes up.
    rounded = (bits + (np.uint32(0x7FFF) + (upper & np.uint32(1)))) >> np.uint32(16)
    is_nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.where(is_nan, upper | np.uint32(0x40), rounded).astype(np.uint16)


F32_FORMAT = Format(name="f32", ggml_type=0, block_size=1, block_bytes=4, dequantize=_from_f32)
F16_FORMAT = Format(name="f16", ggml_type=1, block_size=1, block_bytes=2, dequantize=_from_f16)
BF16_FORMAT = Format(name="bf16", ggml_type=30, block_size=1, block_bytes=2, dequantize=_from_bf16)

FORMATS = (F32_FORMAT, F16_FORMAT, BF16_FORMAT)
