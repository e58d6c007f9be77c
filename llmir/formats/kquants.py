"""ggml's K-quants: super-blocks of 256 elements whose groups have small integer scales.

Shape legend: B super-blocks, G groups in one (16 of 16 elements, or 8 of 32).

    block   bytes, in order                                  bytes   group   w
    q2_k    scales[16] qs[64] d dmin                            84      16   d*s * q - dmin*m
    q3_k    hmask[32] qs[64] scales[12] d                      110      16   d*s * (q - 4)
    q4_k    d dmin scales[12] qs[128]                          144      32   d*s * q - dmin*m
    q5_k    d dmin scales[12] qh[32] qs[128]                   176      32   d*s * q - dmin*m
    q6_k    ql[128] qh[64] scales[16] d                        210      16   d*s * (q - 32)

d and dmin are float16; s and m are a group's own integers, 4 or 6 bits packed in
`scales`, or int8 in q6_k.  d*s and dmin*m are exact in float32 (11 + 8 bits at
most), so folding them into one float32 scale and min per group loses nothing.

The bits of an element lie in one or two places.  A run of bytes holds one field of
many elements, and the next field of the same bytes belongs to the elements after
those (shown for two bits per element; q5_k's `qh` has one bit, `qs` four):

    bytes of qs    | 32 bytes              | the next 32        |
    bits 0-1       | elements   0 ..  31   | 128 .. 159         |
    bits 2-3       | elements  32 ..  63   | 160 .. 191         |
    bits 4-5       | elements  64 ..  95   | …                  |
    bits 6-7       | elements  96 .. 127   |                    |

Spec: block_q2_K … block_q6_K in ggml-common.h and dequantize_row_q*_K in
ggml-quants.c.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmir.formats.base import F32, U8, QuantLayout
from llmir.formats.blocks import Planes, block_format, half
from llmir.formats.packing import bit_fields, pack

BLOCK = 256


def _field_of_runs(packed: U8, bits: int, run: int) -> U8:
    """uint8 [B, m] → uint8 [B, 256]: the diagram above with runs of `run` bytes."""
    num_blocks = len(packed)
    return bit_fields(packed.reshape(num_blocks, -1, run), bits).reshape(num_blocks, BLOCK)


def _six_bit_scales_and_mins(packed: U8) -> tuple[U8, U8]:
    """q4_k's and q5_k's uint8 [B, 12] → s and m, each uint8 [B, 8] in 0..63.

    sI, mI: scale and min of group I; the upper two bits of groups 4..7 fill up the
    bytes of groups 0..3.

        bytes 0..3    s4[5:4] s0[5:0]   … s7[5:4] s3[5:0]
        bytes 4..7    m4[5:4] m0[5:0]   … m7[5:4] m3[5:0]
        bytes 8..11   m4[3:0] s4[3:0]   … m7[3:0] s7[3:0]
    """
    first_s, first_m, low = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    last_s = (low & np.uint8(0x0F)) | ((first_s & np.uint8(0xC0)) >> np.uint8(2))
    last_m = (low >> np.uint8(4)) | ((first_m & np.uint8(0xC0)) >> np.uint8(2))
    s = np.concatenate([first_s & np.uint8(0x3F), last_s], axis=-1)
    m = np.concatenate([first_m & np.uint8(0x3F), last_m], axis=-1)
    return s, m


def _split_q2_k(b: U8) -> Planes:
    s, m = b[:, :16] & np.uint8(15), b[:, :16] >> np.uint8(4)
    q = _field_of_runs(b[:, 16:80], bits=2, run=32).reshape(-1, 16, 16)
    return Planes(pack(q), half(b[:, 80:82]) * s, -(half(b[:, 82:84]) * m))


def _split_q3_k(b: U8) -> Planes:
    """q - 4 where hmask's bit is clear, else q: so the bit is q's third bit, zero point 4.

    Scales are six bits less 32.  Low nibbles: bytes 0..7 hold groups 0..7 and 8..15; upper
    two bits: bytes 8..11 hold groups 0..3, 4..7, 8..11 and 12..15.
    """
    low = bit_fields(b[:, 96:104], 4).reshape(-1, 16)
    high = bit_fields(b[:, 104:108], 2).reshape(-1, 16)
    s = (low | (high << np.uint8(4))).view(np.int8) - np.int8(32)
    third = _field_of_runs(b[:, :32], bits=1, run=32)
    q = _field_of_runs(b[:, 32:96], bits=2, run=32) | (third << np.uint8(2))
    return Planes(pack(q.reshape(-1, 16, 16)), half(b[:, 108:110]) * s)


class Parts(NamedTuple):
    """Super-blocks taken apart, their scales as the integers that they are.

    quants:  uint8 [B, 256], unsigned: q6_k's zero is 32
    header:  d and dmin float16 [B, 1], s and m integers [B, G]; dmin and m where there are any
    """

    quants: U8
    header: dict[str, NDArray[Any]]


def take_apart(name: str, blocks: U8) -> Parts:
    """q4_k, q5_k or q6_k: uint8 [B, block_bytes] → Parts."""
    return _TAKE_APART[name](blocks)


def _halves(raw: U8) -> NDArray[np.float16]:
    return np.ascontiguousarray(raw).view("<f2")


def _apart_q4_k(b: U8) -> Parts:
    s, m = _six_bit_scales_and_mins(b[:, 4:16])
    q = _field_of_runs(b[:, 16:], bits=4, run=32)
    return Parts(q, {"d": _halves(b[:, :2]), "dmin": _halves(b[:, 2:4]), "s": s, "m": m})


def _apart_q5_k(b: U8) -> Parts:
    s, m = _six_bit_scales_and_mins(b[:, 4:16])
    fifth = _field_of_runs(b[:, 16:48], bits=1, run=32)
    q = _field_of_runs(b[:, 48:], bits=4, run=32) | (fifth << np.uint8(4))
    return Parts(q, {"d": _halves(b[:, :2]), "dmin": _halves(b[:, 2:4]), "s": s, "m": m})


def _apart_q6_k(b: U8) -> Parts:
    low = _field_of_runs(b[:, :128], bits=4, run=64)
    high = _field_of_runs(b[:, 128:192], bits=2, run=32)
    q = low | (high << np.uint8(4))
    return Parts(q, {"d": _halves(b[:, 208:210]), "s": b[:, 192:208].view(np.int8)})


_TAKE_APART = {"q4_k": _apart_q4_k, "q5_k": _apart_q5_k, "q6_k": _apart_q6_k}


def _split_q4_k(b: U8) -> Planes:
    q, header = _apart_q4_k(b)
    return Planes(pack(q.reshape(-1, 8, 32)), *_scales_and_mins(header))


def _split_q5_k(b: U8) -> Planes:
    q, header = _apart_q5_k(b)
    return Planes(q.reshape(-1, 8, 32), *_scales_and_mins(header))


def _split_q6_k(b: U8) -> Planes:
    q, header = _apart_q6_k(b)
    scales = header["d"].astype(np.float32) * header["s"]
    return Planes((q.view(np.int8) - np.int8(32)).reshape(-1, 16, 16), scales)


def _scales_and_mins(header: dict[str, NDArray[Any]]) -> tuple[F32, F32]:
    d, dmin = (header[name].astype(np.float32) for name in ("d", "dmin"))
    return d * header["s"], -(dmin * header["m"])


_4BIT_16 = QuantLayout(bits=4, group_size=16, has_mins=True)
_4BIT_16_ZP = QuantLayout(bits=4, group_size=16, zero_point=4)
_4BIT_32 = QuantLayout(bits=4, group_size=32, has_mins=True)
_INT8_32 = QuantLayout(bits=8, group_size=32, has_mins=True)
_INT8_16 = QuantLayout(bits=8, group_size=16)

FORMATS = (
    block_format("q2_k", 10, block_size=BLOCK, block_bytes=84, layout=_4BIT_16, split=_split_q2_k),
    block_format(
        "q3_k", 11, block_size=BLOCK, block_bytes=110, layout=_4BIT_16_ZP, split=_split_q3_k
    ),
    block_format("q4_k", 12, block_size=BLOCK, block_bytes=144, layout=_4BIT_32, split=_split_q4_k),
    block_format("q5_k", 13, block_size=BLOCK, block_bytes=176, layout=_INT8_32, split=_split_q5_k),
    block_format("q6_k", 14, block_size=BLOCK, block_bytes=210, layout=_INT8_16, split=_split_q6_k),
)
