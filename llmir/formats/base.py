"""What a tensor format is, and the two forms a weight has in llmir.

Shape legend: N rows (output features), K columns (input features), G groups
in a row, g elements in a group.

A `Weight` is a tensor as a file has it: raw bytes in some `Format`.  A
`GroupQuantized` is the same numbers as structure-of-arrays, the form that the
portable layout of an artifact stores and `llm.quantized_matmul` reads:

    w[n, k] = (quants[n, k] - zero_point) * scales[n, k // g] + mins[n, k // g]

`scales` and `mins` are float32 (float16 scales compute silently wrong results
on one Vulkan driver).  4-bit quants are packed two to a byte inside a group:
byte j of a group holds element j in its low and element j + g/2 in its high
nibble, as ggml's Q4_0 does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmir.errors import CorruptModelError
from llmir.formats.packing import chunks, unpack

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantLayout:
    """The static part of a structure-of-arrays quantised matrix.

    bits:        4 (unsigned, packed two to a byte) or 8 (signed int8)
    group_size:  g, elements that share a scale, along K
    zero_point:  subtracted from a quant before scaling (8 for Q4_0; 0 for int8)
    has_mins:    whether an additive float32 per group exists
    """

    bits: int
    group_size: int
    zero_point: int = 0
    has_mins: bool = False

    @property
    def group_bytes(self) -> int:
        """Bytes of one group's quants."""
        return self.group_size * self.bits // 8


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupQuantized:
    """A matrix [N, K] as planes.

    quants:  int8 [N, G, group_bytes]
    scales:  float32 [N, G]
    mins:    float32 [N, G], or None when `layout.has_mins` is false
    """

    layout: QuantLayout
    quants: NDArray[np.int8]
    scales: F32
    mins: F32 | None

    @property
    def shape(self) -> tuple[int, int]:
        n, groups = self.scales.shape
        return n, groups * self.layout.group_size

    def dequantize(self) -> F32:
        """float32 [N, K]: the formula at the top of this module."""
        lay, (num_rows, num_groups) = self.layout, self.scales.shape
        out = np.empty((num_rows, num_groups, lay.group_size), np.float32)
        # Scales of a corrupt file may be inf or NaN; the weights then are too, without a warning.
        with np.errstate(invalid="ignore", over="ignore"):
            for rows in chunks(num_rows, num_groups * lay.group_size):
                q = self.quants[rows]
                values = unpack(q.view(np.uint8)) if lay.bits == 4 else q
                np.subtract(values, np.float32(lay.zero_point), out=out[rows], dtype=np.float32)
                out[rows] *= self.scales[rows, :, None]
                if self.mins is not None:
                    out[rows] += self.mins[rows, :, None]
        return out.reshape(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One way to store numbers in a file: a float dtype or a block format.

    name:         lower case: "f32", "bf16", "q4_1", "q6_k"
    ggml_type:    the type's id in a GGUF file, None if GGUF has no such type
    block_size:   elements per block (1 for float dtypes)
    block_bytes:  bytes per block
    dequantize:   uint8 [B, block_bytes] → float32 [B, block_size]
    to_groups:    uint8 [N, K/block_size, block_bytes] → GroupQuantized with exactly the
                  same values; None for float formats, which stay as they are
    layout:       the QuantLayout that `to_groups` gives, None for float formats
    """

    name: str
    ggml_type: int | None
    block_size: int
    block_bytes: int
    dequantize: Callable[[U8], F32]
    to_groups: Callable[[U8], GroupQuantized] | None = None
    layout: QuantLayout | None = None

    @property
    def is_float(self) -> bool:
        return self.to_groups is None

    def num_bytes(self, shape: tuple[int, ...], tensor: str) -> int:
        """Bytes that a tensor of this shape takes; blocks run along the last dim.

        Raises CorruptModelError, which names `tensor`, where a row is not whole blocks.
        """
        k = shape[-1] if shape else 1
        if k % self.block_size:
            raise CorruptModelError(
                f"tensor {tensor!r}: {self.name} stores rows in blocks of {self.block_size} "
                f"elements, but its rows have {k}; the file is damaged or was written wrongly"
            )
        return math.prod(shape) // self.block_size * self.block_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """A named tensor as its file stores it.

    shape:   logical, row major, last dim contiguous: [N, K] for a matrix, [D] for a vector
    format:  how `raw` is to be read
    raw:     uint8, flat or any shape, C-contiguous rows; usually a view of a mapped file
             (never copied until it is used)
    """

    name: str
    shape: tuple[int, ...]
    format: Format
    raw: U8

    def blocks(self) -> U8:
        """`raw` as uint8 [N…, K/block_size, block_bytes], a view.

        Raises CorruptModelError where `raw` is not the size that shape and format need.
        """
        need = self.format.num_bytes(self.shape, self.name)
        if self.raw.size != need:
            raise CorruptModelError(
                f"tensor {self.name!r}: shape {list(self.shape)} in {self.format.name} takes "
                f"{need} bytes, but the file has {self.raw.size}; the file is damaged or truncated"
            )
        *rows, k = self.shape or (1,)
        return self.raw.reshape(*rows, k // self.format.block_size, self.format.block_bytes)

    def dequantize(self) -> F32:
        """The whole tensor as a new float32 array in its logical shape.

        Raises CorruptModelError as `blocks` does.
        """
        flat = self.blocks().reshape(-1, self.format.block_bytes)
        return self.format.dequantize(flat).reshape(self.shape)

    def take_rows(self, order: NDArray[np.intp]) -> Weight:
        """A copy with rows (dim 0) in another order; blocks never cross rows."""
        raw = self.raw.reshape(self.shape[0], -1)[order]
        shape = (len(order), *self.shape[1:])
        return Weight(name=self.name, shape=shape, format=self.format, raw=raw)
