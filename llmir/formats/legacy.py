"""ggml's first block formats: 32 elements with one float16 scale, some with a float16 min.

    bytes   0    2    4        8                    24
    q4_0    d    qs[16]                                    w = d * (q - 8)
    q4_1    d    m    qs[16]                               w = d * q + m
    q5_0    d    qh[4]    qs[16]                           w = d * (q - 16)
    q5_1    d    m    qh[4]    qs[16]                      w = d * q + m
    q8_0    d    qs[32], int8                              w = d * q

qs[j] holds the low four bits of element j in its low and of element j + 16 in
its high nibble; bit i of qh, a little-endian uint32, is the fifth bit of
element i.  Spec: block_q4_0 … block_q8_0 in ggml-common.h.

Five-bit quants become int8: there is no five-bit plane that a kernel reads well.
"""

from __future__ import annotations

import numpy as np

from llmir.formats.base import F32, U8, QuantLayout
from llmir.formats.blocks import Planes, block_format, half
from llmir.formats.packing import pack, unpack

BLOCK = 32


def _five_bits(qh: U8, qs: U8) -> U8:
    """uint8 [B, 4] and [B, 16] → uint8 [B, 32] in 0..31."""
    fifth = np.unpackbits(qh, axis=-1, bitorder="little")
    return unpack(qs) | (fifth << np.uint8(4))


def _split_q4_0(b: U8) -> Planes:
    return Planes(b[:, None, 2:], half(b[:, :2]))


def _split_q4_1(b: U8) -> Planes:
    return Planes(b[:, None, 4:], half(b[:, :2]), half(b[:, 2:4]))


def _split_q5_0(b: U8) -> Planes:
    q = _five_bits(b[:, 2:6], b[:, 6:]).view(np.int8) - np.int8(16)
    return Planes(q[:, None], half(b[:, :2]))


def _split_q5_1(b: U8) -> Planes:
    return Planes(_five_bits(b[:, 4:8], b[:, 8:])[:, None], half(b[:, :2]), half(b[:, 2:4]))


def _split_q8_0(b: U8) -> Planes:
    return Planes(b[:, None, 2:], half(b[:, :2]))


def _reciprocal(d: F32) -> F32:
    """1/d, and 0 where that is not finite.

    d = 0 is a block of zeros.  Below 2.9e-39 the reciprocal overflows; such a d is zero as
    float16, so the quants do not matter, but they must not come from casting inf or NaN.
    """
    inverse = np.float32(1) / d
    return np.where(np.isinf(inverse), np.float32(0), inverse)


def quantize_q4_0(values: F32) -> U8:
    """float32 [B, 32] → uint8 [B, 18], the bytes that ggml's reference quantiser writes.

    The element of largest magnitude becomes -8, which uses all sixteen values; the
    opposite extreme is clipped from 8 to 7.
    """
    with np.errstate(all="ignore"):  # zeros, subnormals, and NaN or inf, which d then shows
        largest = np.abs(values).argmax(axis=-1)[:, None]
        d = np.take_along_axis(values, largest, axis=-1) / np.float32(-8)
        q = (values * _reciprocal(d) + np.float32(8.5)).astype(np.uint8)
        return np.concatenate([_half_bytes(d), pack(np.minimum(q, np.uint8(15)))], axis=-1)


def quantize_q8_0(values: F32) -> U8:
    """float32 [B, 32] → uint8 [B, 34], the bytes that ggml's reference quantiser writes.

    Rounds to nearest with halves away from zero, as C's roundf does.
    """
    with np.errstate(all="ignore"):
        d = np.abs(values).max(axis=-1)[:, None] / np.float32(127)
        scaled = values * _reciprocal(d)
        # Not trunc(x + 0.5): just below one half that sum rounds up to 1.
        size = np.abs(scaled)
        whole = np.floor(size)
        whole += size - whole >= np.float32(0.5)
        q = np.copysign(whole, scaled).astype(np.int8)
        return np.concatenate([_half_bytes(d), q.view(np.uint8)], axis=-1)


def _half_bytes(d: F32) -> U8:
    """float32 [B, 1] → uint8 [B, 2], float16 rounded to nearest even."""
    return d.astype("<f2").view(np.uint8)


_NIBBLES = QuantLayout(bits=4, group_size=BLOCK, zero_point=8)
_NIBBLES_MINS = QuantLayout(bits=4, group_size=BLOCK, has_mins=True)
_BYTES = QuantLayout(bits=8, group_size=BLOCK)
_BYTES_MINS = QuantLayout(bits=8, group_size=BLOCK, has_mins=True)

Q4_0 = block_format("q4_0", 2, block_size=BLOCK, block_bytes=18, layout=_NIBBLES, split=_split_q4_0)
Q4_1 = block_format(
    "q4_1", 3, block_size=BLOCK, block_bytes=20, layout=_NIBBLES_MINS, split=_split_q4_1
)
Q5_0 = block_format("q5_0", 6, block_size=BLOCK, block_bytes=22, layout=_BYTES, split=_split_q5_0)
Q5_1 = block_format(
    "q5_1", 7, block_size=BLOCK, block_bytes=24, layout=_BYTES_MINS, split=_split_q5_1
)
Q8_0 = block_format("q8_0", 8, block_size=BLOCK, block_bytes=34, layout=_BYTES, split=_split_q8_0)

FORMATS = (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0)
