"""Bit fields in bytes, and walking a big array piece by piece."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

# 4 MiB of float32: temporaries stay in a core's L2/L3 cache, and the memory used besides
# the result does not depend on the size of the tensor.
CHUNK_ELEMENTS = 1 << 20


def bit_fields(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """uint8 [..., m] → uint8 [..., 8/bits, m]: field f of every byte, lowest bits first.

    For bits=2 and m bytes a, b, …:

        byte     a = a3 a2 a1 a0   b = b3 b2 b1 b0          (aI: bits 2I and 2I+1)
        result   [[a0, b0, …], [a1, b1, …], [a2, b2, …], [a3, b3, …]]
    """
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    fields: NDArray[np.uint8] = (packed[..., None, :] >> shifts) & np.uint8((1 << bits) - 1)
    return fields


def unpack(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The 4-bit values of a group: uint8 [..., g/2] → uint8 [..., g] in 0..15.

    Byte j holds element j in its low and element j + g/2 in its high nibble.
    """
    return np.concatenate([packed & np.uint8(15), packed >> np.uint8(4)], axis=-1)


def pack(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The inverse of `unpack`: uint8 [..., g] in 0..15 → uint8 [..., g/2]."""
    g = values.shape[-1]
    assert g % 2 == 0, f"a group of {g} cannot be packed two to a byte"
    assert values.dtype == np.uint8, f"4-bit values come as uint8, not {values.dtype}"
    assert not (values > 15).any(), "4-bit values are 0..15"
    packed: NDArray[np.uint8] = values[..., : g // 2] | (values[..., g // 2 :] << np.uint8(4))
    return packed


def chunks(count: int, elements_each: int) -> Iterator[slice]:
    """Slices that cover range(count), each of about CHUNK_ELEMENTS elements, at least one item."""
    step = max(1, CHUNK_ELEMENTS // max(1, elements_each))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))
