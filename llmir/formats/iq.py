"""iq4_nl: 32 elements, one float16 scale, 4-bit indices into a table of int8 values.

    bytes   0    2
    iq4_nl  d    qs[16]        w = d * VALUES[index]

Indices lie in qs as q4_0's quants do.  Spec: block_iq4_nl and kvalues_iq4nl in
ggml-common.h.  The table is not linear, so the planes hold its int8 values, not
the indices: a byte per element for a kernel that needs no table.
"""

from __future__ import annotations

import numpy as np

from llmir.formats.base import U8, QuantLayout
from llmir.formats.blocks import Planes, block_format, half
from llmir.formats.packing import unpack

VALUES = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8
)


def _split_iq4_nl(b: U8) -> Planes:
    return Planes(VALUES[unpack(b[:, None, 2:])], half(b[:, :2]))


IQ4_NL = block_format(
    "iq4_nl",
    20,
    block_size=32,
    block_bytes=18,
    layout=QuantLayout(bits=8, group_size=32),
    split=_split_iq4_nl,
)

FORMATS = (IQ4_NL,)
