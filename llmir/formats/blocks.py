"""How a ggml block format becomes a `Format`.

Shape legend: B blocks, G groups in a block, g elements in a group.

A block format says one thing: how to take its blocks apart into planes.  Both
`to_groups` and `dequantize` follow from it, so they give the same values by
construction: the formula of `GroupQuantized` is the only arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmir.formats.base import F32, U8, Format, GroupQuantized, QuantLayout
from llmir.formats.packing import chunks


class Planes(NamedTuple):
    """Some blocks taken apart.

    quants:  uint8 or int8 [B, G, group_bytes], in the form of GroupQuantized.quants
    scales:  float32 [B, G]
    mins:    float32 [B, G], added; None where the layout has none
    """

    quants: NDArray[np.uint8] | NDArray[np.int8]
    scales: F32
    mins: F32 | None = None


def half(raw: U8) -> F32:
    """The little-endian float16 in uint8 [B, 2] → float32 [B, 1], exact."""
    return raw.view("<f2").astype(np.float32)


def block_format(
    name: str,
    ggml_type: int,
    *,
    block_size: int,
    block_bytes: int,
    layout: QuantLayout,
    split: Callable[[U8], Planes],
) -> Format:
    """A `Format` from `split`: uint8 [B, block_bytes] → Planes, B ≥ 0 blocks at a time."""
    num_groups = block_size // layout.group_size

    def to_groups(blocks: U8) -> GroupQuantized:
        num_rows, per_row, _ = blocks.shape
        flat = blocks.reshape(-1, block_bytes)
        quants = np.empty((len(flat), num_groups, layout.group_bytes), np.int8)
        scales = np.empty((len(flat), num_groups), np.float32)
        mins = np.empty_like(scales) if layout.has_mins else None
        with np.errstate(invalid="ignore", over="ignore"):  # a corrupt file has any scale
            for part in chunks(len(flat), block_size):
                planes = split(flat[part])
                quants[part] = planes.quants.view(np.int8)
                scales[part] = planes.scales
                if mins is not None:
                    assert planes.mins is not None, f"{name}: the layout says it has mins"
                    mins[part] = planes.mins
        row_groups = per_row * num_groups
        return GroupQuantized(
            layout=layout,
            quants=quants.reshape(num_rows, row_groups, layout.group_bytes),
            scales=scales.reshape(num_rows, row_groups),
            mins=None if mins is None else mins.reshape(num_rows, row_groups),
        )

    def dequantize(blocks: U8) -> F32:
        out = np.empty((len(blocks), block_size), np.float32)
        for part in chunks(len(blocks), block_size):
            out[part] = to_groups(blocks[part, None]).dequantize()
        return out

    return Format(
        name=name,
        ggml_type=ggml_type,
        block_size=block_size,
        block_bytes=block_bytes,
        dequantize=dequantize,
        to_groups=to_groups,
        layout=layout,
    )
