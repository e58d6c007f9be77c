"""The form a weight takes in an artifact: as its file has it, or rounded to another format.

Shape legend: N rows, K columns, G groups in a row, g elements in a group.

    mode       result           scale                         rounding
    keep       as the file      as the file                   none: the same values
    f32        float32          –                             none: the same values
    bf16       bf16             –                             to nearest, ties to even
    q8_0       int8, g = 32     float16 max|w| / 127          to nearest, halves away from zero
    q4_0       4 bit, g = 32    float16 w_max / -8            floor(x + 1/2), clipped to 0..15
    int8       int8, g = K      float32 max|w| / 127          to nearest, ties to even
    int4-g<g>  4 bit            float32 w_max / -8            to nearest, clipped to 0..15
    …-zp       4 bit            float32 (max w - min w) / 15  to nearest, of w - min w

w_max is the element of largest magnitude with its sign; g is 32, 64 or 128; -zp: with a zero
point, w = scale q + min w.  q8_0 and q4_0 are ggml's, byte for byte; int8 (one scale per output
channel) and int4 are llmir's own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import numpy as np

from llmir.errors import UnknownNameError, UnsupportedModelError
from llmir.formats.base import F32, U8, Format, GroupQuantized, QuantLayout, Weight
from llmir.formats.floats import BF16_FORMAT, F32_FORMAT, to_bf16
from llmir.formats.legacy import Q4_0, Q8_0, quantize_q4_0, quantize_q8_0
from llmir.formats.packing import chunks, pack

INT4_GROUP_SIZES: Final = (32, 64, 128)
_INT4_GROUPS: Final = {f"int4-g{size}": size for size in INT4_GROUP_SIZES}
_INT4_MODES: Final = (*_INT4_GROUPS, *(f"{mode}-zp" for mode in _INT4_GROUPS))

WEIGHT_MODES: Final = ("keep", "f32", "bf16", "q8_0", "q4_0", "int8", *_INT4_MODES)


def quantize(weight: Weight, mode: str) -> Weight | GroupQuantized:
    """`weight` as an artifact stores it under `mode`: float as Weight, the rest as planes.

    Only matrices change.  A vector (a norm, a bias) is too small to gain from fewer bits
    and too sensitive to lose them: it comes back as it is, or as f32 from a block format.

    Returns the weight itself, not a copy, where nothing has to change.  Works on a few rows
    at a time, so that memory beyond the result stays small.

    Raises:
        UnknownNameError: `mode` is not one of WEIGHT_MODES.
        UnsupportedModelError: rows are not whole groups of the mode, or values are NaN,
            infinite, or too large for the mode's scales.
        CorruptModelError: the weight's bytes are not the size its shape needs.
    """
    if mode not in WEIGHT_MODES:
        raise UnknownNameError("weight mode", mode, WEIGHT_MODES)
    if len(weight.shape) < 2:
        return weight if weight.format.is_float else widen(weight)
    if mode in ("keep", weight.format.name):
        return weight if weight.format.is_float else to_groups(weight)
    if mode == "f32":
        return widen(weight)
    if mode == "bf16":
        return _narrow_to_bf16(weight)
    group_size, round_rows = _ROUNDERS[mode]
    return _round(weight, mode, group_size, round_rows)


def to_groups(weight: Weight) -> GroupQuantized:
    """A matrix in a block format as planes with exactly its values.

    Raises UnsupportedModelError where it is no matrix [N, K], CorruptModelError as
    `Weight.blocks` does.
    """
    convert = weight.format.to_groups
    assert convert is not None, f"{weight.format.name} is a float format and has no groups"
    _require_matrix(weight)
    return convert(weight.blocks())


def _require_matrix(weight: Weight) -> None:
    if len(weight.shape) != 2 or 0 in weight.shape:
        raise UnsupportedModelError(
            f"tensor {weight.name!r}: only matrices [N, K] with N, K > 0 can be held quantised, "
            f"not shape {list(weight.shape)}; use --weights f32 or bf16"
        )


def widen(weight: Weight) -> Weight:
    """`weight` in float32, whatever its shape; the same values.

    Raises CorruptModelError as `Weight.blocks` does.
    """
    return _float_weight(weight, F32_FORMAT, weight.dequantize().astype("<f4", copy=False))


def _narrow_to_bf16(weight: Weight) -> Weight:
    blocks = weight.blocks().reshape(-1, weight.format.block_bytes)
    bits = np.empty((len(blocks), weight.format.block_size), "<u2")
    for part in chunks(len(blocks), weight.format.block_size):
        bits[part] = to_bf16(weight.format.dequantize(blocks[part]))
    return _float_weight(weight, BF16_FORMAT, bits)


def _float_weight(weight: Weight, fmt: Format, values: np.ndarray) -> Weight:
    raw: U8 = values.reshape(-1).view(np.uint8)
    return Weight(name=weight.name, shape=weight.shape, format=fmt, raw=raw)


def _round(
    weight: Weight,
    mode: str,
    group_size: int | None,
    round_rows: Callable[[F32], GroupQuantized],
) -> GroupQuantized:
    _require_matrix(weight)
    num_rows, k = weight.shape
    if group_size is not None and k % group_size:
        raise UnsupportedModelError(
            f"tensor {weight.name!r}: {mode} rounds rows in blocks of {group_size} elements, "
            f"but its rows have K = {k}, which is no multiple of it; "
            "use --weights int8 (one scale per row), bf16 or keep"
        )
    blocks = weight.blocks()
    parts = []
    for rows in chunks(num_rows, k):
        flat = blocks[rows].reshape(-1, weight.format.block_bytes)
        parts.append(round_rows(weight.format.dequantize(flat).reshape(-1, k)))
    result = GroupQuantized(
        layout=parts[0].layout,
        quants=np.concatenate([p.quants for p in parts]),
        scales=np.concatenate([p.scales for p in parts]),
        mins=None if parts[0].mins is None else np.concatenate([p.mins for p in parts]),
    )
    # Each scale comes from the largest magnitude of its group, so a NaN or infinity
    # anywhere, and a value beyond float16's reach, shows in the scale.
    if not np.isfinite(result.scales).all():
        raise UnsupportedModelError(
            f"tensor {weight.name!r}: has values that are NaN, infinite or too large to be "
            f"rounded to {mode}; use --weights keep"
        )
    return result


def _rows_q8_0(w: F32) -> GroupQuantized:
    assert Q8_0.to_groups is not None
    return Q8_0.to_groups(quantize_q8_0(w.reshape(-1, 32)).reshape(len(w), -1, Q8_0.block_bytes))


def _rows_q4_0(w: F32) -> GroupQuantized:
    assert Q4_0.to_groups is not None
    return Q4_0.to_groups(quantize_q4_0(w.reshape(-1, 32)).reshape(len(w), -1, Q4_0.block_bytes))


def _nearest(w_NGg: F32, scales_NG: F32) -> F32:
    """w / scale rounded to nearest, ties to even; 0 in groups whose scale is 0."""
    divisor = np.where(scales_NG == 0, np.float32(1), scales_NG)
    return np.rint(w_NGg / divisor[:, :, None])


def _rows_int8(w: F32) -> GroupQuantized:
    with np.errstate(all="ignore"):  # NaN and inf: the caller looks at the scales
        scales = np.abs(w).max(axis=1, keepdims=True) / np.float32(127)
        # The clip is for subnormal scales, which are coarse enough to give more than 127.
        q = np.clip(_nearest(w[:, None, :], scales), -127, 127).astype(np.int8)
    layout = QuantLayout(bits=8, group_size=w.shape[1])
    return GroupQuantized(layout=layout, quants=q, scales=scales, mins=None)


def _rows_int4(group_size: int, w: F32) -> GroupQuantized:
    groups = w.reshape(len(w), -1, group_size)
    with np.errstate(all="ignore"):
        largest = np.abs(groups).argmax(axis=-1)[:, :, None]
        # The largest magnitude becomes -8.  Measured on normal, Laplace and Student-t
        # values, max|w| / 7 has 27 % and max|w| / 7.5 has 22 % more squared error.
        scales = np.take_along_axis(groups, largest, axis=-1)[:, :, 0] / np.float32(-8)
        q = np.clip(_nearest(groups, scales) + np.float32(8), 0, 15).astype(np.uint8)
    layout = QuantLayout(bits=4, group_size=group_size, zero_point=8)
    return GroupQuantized(layout=layout, quants=pack(q).view(np.int8), scales=scales, mins=None)


def _rows_int4_zp(group_size: int, w: F32) -> GroupQuantized:
    groups = w.reshape(len(w), -1, group_size)
    with np.errstate(all="ignore"):
        mins = groups.min(axis=-1)
        scales = (groups.max(axis=-1) - mins) / np.float32(15)
        q = np.clip(_nearest(groups - mins[:, :, None], scales), 0, 15).astype(np.uint8)
    layout = QuantLayout(bits=4, group_size=group_size, has_mins=True)
    return GroupQuantized(layout=layout, quants=pack(q).view(np.int8), scales=scales, mins=mins)


# mode → elements that a row must be whole groups of (None: a row is one group), rounder of
# float32 [n, K]
_ROUNDERS: Final[dict[str, tuple[int | None, Callable[[F32], GroupQuantized]]]] = {
    "q8_0": (32, _rows_q8_0),
    "q4_0": (32, _rows_q4_0),
    "int8": (None, _rows_int8),
    **{mode: (size, partial(_rows_int4, size)) for mode, size in _INT4_GROUPS.items()},
    **{f"{mode}-zp": (size, partial(_rows_int4_zp, size)) for mode, size in _INT4_GROUPS.items()},
}
