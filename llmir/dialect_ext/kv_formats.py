"""How the pages of the KV cache store numbers, and numpy's way from and to them.

    f32, f16, bf16   kv[N, 2, H, ps, D] of that type
    int8             kv i8[N, 2, H, ps, D + 4], a row: D integers q, then the float32 s, its bytes
                     little-endian;  x = s q,  s = max |x| / 127,  q = x / s to nearest, ties to
                     even.  A row of zeros has s = 0; one with a NaN or an infinity reads as NaN
    fp8              kv i8[N, 2, H, ps, D], bytes of float8_e4m3fn (Micikevicius et al., 2022): x to
                     nearest, ties to even; ±448 beyond that

A row is one token's K or V of one head: it has its own scale.

Shape legend: N pages, H KV heads, ps tokens a page, D head dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llmir.dialect_ext.base import Array, Call, Operand
from llmir.dialect_ext.types import TensorType, is_static

SCALE_BYTES = 4
LARGEST_INT8 = 127
LARGEST_FP8 = 448.0
# Dim _D: D, or D + 4 of int8; `check_kv` looks.
KV_OPERAND = Operand(name="kv", dims=("N", 2, "H", "ps", "_D"), dtypes=("f32", "f16", "bf16", "i8"))


@dataclass(frozen=True, slots=True)
class KvPages:
    """What a call's pages are: format, element (MLIR's type), heads, tokens a page, head dim."""

    format: str
    element: str
    heads: int
    page_size: int
    dim: int


def kv_pages(call: Call) -> KvPages:
    """Of a call that `check_kv` has let through."""
    kv = call.type_of("kv")
    _, _, heads, page_size, row = kv.shape
    dim = _head_dim(call)
    return KvPages(_format(kv.dtype, row, dim), kv.dtype, heads, page_size, dim)


def check_kv(call: Call) -> None:
    """Fail unless kv has static H, ps and D, and rows of a format."""
    kv, dim = call.type_of("kv"), _head_dim(call)
    call.op.expect(
        all(is_static(d) for d in kv.shape[1:]), f"H, ps and D of kv must be static, got {kv}"
    )
    row = kv.shape[4]
    wanted = f"{dim} + {SCALE_BYTES} (int8) or {dim} (fp8)" if kv.dtype == "i8" else str(dim)
    call.op.expect(
        row == dim or (kv.dtype == "i8" and row == dim + SCALE_BYTES),
        f"operand 'kv' must have rows of {wanted}, as D is {dim}; got {kv}",
    )


def _head_dim(call: Call) -> int:
    """D, of the operands that have a dim of that name."""
    for spec, found in zip(call.op.operands, call.operands, strict=True):
        if found is not None and "D" in spec.dims:
            dim = found.shape[spec.dims.index("D")]
            if is_static(dim):
                return int(dim)
    call.op.fail("D must be static")
    raise AssertionError("fail raises")


def _format(dtype: str, row: int, dim: int) -> str:
    if dtype != "i8":
        return dtype
    return "fp8" if row == dim else "int8"


def stored(x: Array, kv: Array) -> Array:
    """float32 rows [..., D] as the pages `kv` store them: [..., D] or [..., D + 4]."""
    if kv.dtype != np.int8:
        return x
    return to_fp8(x) if kv.shape[-1] == x.shape[-1] else to_int8(x)


def read(rows: Array, dim: int) -> Array:
    """Rows of pages as float32 [..., D]."""
    if rows.dtype != np.int8:
        return rows.astype(np.float32)
    return from_fp8(rows) if rows.shape[-1] == dim else from_int8(rows)


def to_int8(x: Array) -> Array:
    """float32 [..., D] → int8 [..., D + 4]."""
    x = x.astype(np.float32)
    scale = np.abs(x).max(axis=-1, keepdims=True) / np.float32(LARGEST_INT8)
    with np.errstate(invalid="ignore", over="ignore"):
        q = np.rint(x / np.where(scale > 0, scale, np.float32(1)))
    q = np.clip(np.where(np.isnan(q), 0, q), -LARGEST_INT8, LARGEST_INT8).astype(np.int8)
    return np.concatenate([q, scale.astype("<f4").view(np.int8)], axis=-1)


def from_int8(rows: Array) -> Array:
    """int8 [..., D + 4] → float32 [..., D]."""
    scale = np.ascontiguousarray(rows[..., -SCALE_BYTES:]).view("<f4")
    with np.errstate(invalid="ignore"):  # 0 times infinity
        return np.asarray(rows[..., :-SCALE_BYTES].astype(np.float32) * scale)


def to_fp8(x: Array) -> Array:
    """float32 → the bytes of float8_e4m3fn, as int8."""
    x = x.astype(np.float32)
    size = np.minimum(np.abs(x), np.float32(LARGEST_FP8)).astype(np.float64)  # a NaN stays
    _, exponent = np.frexp(size)
    # Numbers of 2^(e - 1) … 2^e have three bits after the first, at the least 2^-9.
    unit = np.ldexp(1.0, np.maximum(exponent - 4, -9))
    size = np.rint(size / unit) * unit
    mantissa, exponent = np.frexp(size)
    normal = (exponent + 6) * 8 + np.rint((mantissa * 2 - 1) * 8)
    with np.errstate(invalid="ignore"):
        byte = np.where(size < 2.0**-6, np.rint(size * 2**9), normal)
        byte = np.where(np.isnan(size), 127, byte).astype(np.uint8)
    return (byte | np.signbit(x).astype(np.uint8) << 7).view(np.int8)


def from_fp8(rows: Array) -> Array:
    """The bytes of float8_e4m3fn → float32."""
    return _FP8_VALUES[rows.view(np.uint8)]


def _fp8_values() -> Array:
    byte = np.arange(256)
    exponent, mantissa = byte >> 3 & 15, byte & 7
    size = np.where(
        exponent == 0,
        np.ldexp(mantissa / 8.0, -6),
        np.ldexp(1 + mantissa / 8.0, exponent - 7),
    )
    size[(byte & 127) == 127] = np.nan
    return np.where(byte < 128, size, -size).astype(np.float32)


_FP8_VALUES = _fp8_values()


def kv_type(format_name: str, heads: int, page_size: int, dim: int) -> TensorType:
    """The pages of any number, in a format."""
    row = dim + SCALE_BYTES if format_name == "int8" else dim
    element = "i8" if format_name in ("int8", "fp8") else format_name
    return TensorType((None, 2, heads, page_size, row), element)
