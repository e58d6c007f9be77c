"""Packed matrices: the layouts that the C kernels stream, tiles of sixteen rows.

Shape legend: N rows, K columns, R = ceil(N / 16) tiles, S sections of a row, B blocks of 32
columns, n rows of some tiles.

plugins/cpu/blocks.h draws the tiles; a packed matrix is uint8 [R, tile_bytes].  A format is
stored in the bits that it has: a 4-bit one in nibbles, a 6-bit one in nibbles and pairs of
bits, its scales as the file has them.  Rows beyond N are zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmir.formats import kquants
from llmir.formats.base import F32, U8, GroupQuantized, QuantLayout, Weight
from llmir.formats.iq import VALUES as IQ4_NL_VALUES
from llmir.formats.packing import CHUNK_ELEMENTS, unpack
from llmir.formats.rounding import INT4_GROUP_SIZES

TILE_ROWS = 16
BLOCK = 32
_QUADS = 8  # of four columns, in a block

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """Numbers in the header of a section: `count` vectors of sixteen, one number a row."""

    name: str
    dtype: str
    count: int = 1

    @property
    def num_bytes(self) -> int:
        return TILE_ROWS * self.count * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedFormat:
    """How a packed format stores a tile.

    bits:      4, 5, 6 or 8: an unsigned number u per element; 16 or 32: a float
    section:   columns that share a header; 0: all of a row
    header:    what w is made with, see `_weights`
    zero:      of u
    table:     u is an index into it; its values then take the place of u
    """

    name: str
    bits: int
    section: int = BLOCK
    header: tuple[Field, ...] = ()
    zero: int = 0
    table: tuple[int, ...] = ()

    @property
    def is_float(self) -> bool:
        return self.bits >= 16

    @property
    def has_min(self) -> bool:
        return any("min" in field.name for field in self.header)

    @property
    def header_bytes(self) -> int:
        return sum(field.num_bytes for field in self.header)

    def section_bytes(self, num_cols: int) -> int:
        """Bytes of a section of sixteen rows."""
        return self.header_bytes + TILE_ROWS * (self.section or num_cols) * self.bits // 8

    def num_sections(self, num_cols: int) -> int:
        return num_cols // (self.section or num_cols)

    def num_bytes(self, num_rows: int, num_cols: int) -> int:
        """Bytes of a packed matrix."""
        tile = self.num_sections(num_cols) * self.section_bytes(num_cols)
        return -(-num_rows // TILE_ROWS) * tile


_SCALE, _MIN = Field(name="scale", dtype="<f2"), Field(name="min", dtype="<f2")
_D, _DMIN = Field(name="d", dtype="<f2"), Field(name="dmin", dtype="<f2")
_SUB = (Field(name="s", dtype="u1", count=8), Field(name="m", dtype="u1", count=8))
_HALVES = Field(name="s", dtype="i1", count=16)
_SCALE_32, _MIN_32 = Field(name="scale", dtype="<f4"), Field(name="min", dtype="<f4")

FORMATS = {
    f.name: f
    for f in (
        PackedFormat(name="q4_0", bits=4, zero=8, header=(_SCALE,)),
        PackedFormat(name="q4_1", bits=4, header=(_SCALE, _MIN)),
        PackedFormat(name="q5_0", bits=5, zero=16, header=(_SCALE,)),
        PackedFormat(name="q5_1", bits=5, header=(_SCALE, _MIN)),
        PackedFormat(name="q8_0", bits=8, zero=128, header=(_SCALE,)),
        PackedFormat(name="iq4_nl", bits=4, header=(_SCALE,), table=tuple(map(int, IQ4_NL_VALUES))),
        PackedFormat(name="q4_k", bits=4, section=256, header=(_D, _DMIN, *_SUB)),
        PackedFormat(name="q5_k", bits=5, section=256, header=(_D, _DMIN, *_SUB)),
        PackedFormat(name="q6_k", bits=6, section=256, zero=32, header=(_D, _HALVES)),
        PackedFormat(name="int8", bits=8, section=0, zero=128, header=(_SCALE_32,)),
        *(
            PackedFormat(name=f"int4_g{g}", bits=4, section=g, zero=8, header=(_SCALE_32,))
            for g in INT4_GROUP_SIZES
        ),
        *(
            PackedFormat(name=f"int4_g{g}_zp", bits=4, section=g, header=(_SCALE_32, _MIN_32))
            for g in INT4_GROUP_SIZES
        ),
        PackedFormat(name="f32", bits=32, section=0),
        PackedFormat(name="f16", bits=16, section=0),
        PackedFormat(name="bf16", bits=16, section=0),
    )
}


def format_of(name: str, layout: QuantLayout, num_cols: int) -> str | None:
    """The packed format of planes that a format of that name gave, None where there is none.

    The name may be that of a format of formats, of a weight mode, or empty: then the layout
    alone decides.
    """
    if name in FORMATS and name not in ("int8", "f32", "f16", "bf16"):
        return name
    if layout.bits == 8:
        is_one_group = layout.group_size == num_cols
        return "int8" if is_one_group and not layout.zero_point and not layout.has_mins else None
    if (name and not name.startswith("int4-")) or layout.group_size not in INT4_GROUP_SIZES:
        return None
    if layout.zero_point != (0 if layout.has_mins else 8):
        return None
    return f"int4_g{layout.group_size}{'_zp' if layout.has_mins else ''}"


def pack_matrix(format_name: str, source: Weight | GroupQuantized) -> U8:
    """A matrix → uint8 [R, tile_bytes].

    source: the weight as its file has it, or planes where the format has no blocks of its own.
    K-quants need the former: their planes have lost which integers their scales are made of.
    """
    packed = FORMATS[format_name]
    num_rows, num_cols = source.shape
    num_tiles = -(-num_rows // TILE_ROWS)
    out = np.zeros((num_tiles, packed.num_bytes(TILE_ROWS, num_cols)), np.uint8)
    step = max(1, CHUNK_ELEMENTS // (TILE_ROWS * num_cols))
    for first in range(0, num_tiles, step):
        tiles = out[first : first + step]
        rows = slice(first * TILE_ROWS, min((first + len(tiles)) * TILE_ROWS, num_rows))
        elements, header = _taken_apart(packed, source, rows)
        sections = tiles.reshape(len(tiles), packed.num_sections(num_cols), -1)
        at = 0
        for field in packed.header:
            sections[:, :, at : at + field.num_bytes] = _field_bytes(field, header[field.name])
            at += field.num_bytes
        sections[:, :, at:] = _element_bytes(packed, elements).reshape(*sections.shape[:2], -1)
    return out


def unpack_matrix(format_name: str, packed_bytes: U8, num_rows: int, num_cols: int) -> F32:
    """The matrix float32 [N, K] that packed bytes, of any shape, stand for."""
    packed = FORMATS[format_name]
    num_tiles, num_sections = -(-num_rows // TILE_ROWS), packed.num_sections(num_cols)
    data = packed_bytes.reshape(num_tiles, num_sections, packed.section_bytes(num_cols))
    header, at = {}, 0
    for field in packed.header:
        raw = np.ascontiguousarray(data[:, :, at : at + field.num_bytes])
        numbers = raw.view(field.dtype).reshape(num_tiles, num_sections, field.count, TILE_ROWS)
        header[field.name] = numbers.transpose(0, 3, 1, 2).astype(np.float32)
        at += field.num_bytes
    values = _element_values(packed, np.ascontiguousarray(data[:, :, at:]), num_cols)
    by_section = values.reshape(num_tiles, TILE_ROWS, num_sections, -1)
    with np.errstate(invalid="ignore", over="ignore"):
        weights = _weights(by_section, header)
    return weights.reshape(-1, num_cols)[:num_rows]


def concatenate(matrices: Sequence[U8], *, in_turn: bool = False) -> U8:
    """Packed matrices of one format and K as one: one below the other, or tiles in turn."""
    if not in_turn:
        return np.concatenate(matrices)
    tiles, size = matrices[0].shape
    return np.stack(matrices, axis=1).reshape(len(matrices) * tiles, size)


def _weights(values: F32, header: Mapping[str, F32]) -> F32:
    """values [R, 16, S, columns], header [R, 16, S, count] each → w in the shape of values."""
    if not header:
        return values
    scale = header["scale"] if "scale" in header else header["d"] * header["s"]
    groups = values.reshape(*values.shape[:3], scale.shape[-1], -1) * scale[..., None]
    if "min" in header:
        groups += header["min"][..., None]
    if "dmin" in header:
        groups += -(header["dmin"] * header["m"])[..., None]
    return groups.reshape(values.shape)


def _taken_apart(
    packed: PackedFormat, source: Weight | GroupQuantized, rows: slice
) -> tuple[Array, dict[str, Array]]:
    """Elements [n, K], unsigned or the bits of floats, and the header's fields [n, S, count]."""
    if isinstance(source, Weight):
        if packed.is_float:
            bits = np.dtype(f"<u{packed.bits // 8}")
            return source.raw.view(bits).reshape(source.shape)[rows], {}
        blocks = source.blocks()[rows]
        if packed.section == kquants.BLOCK:
            parts = kquants.take_apart(packed.name, blocks.reshape(-1, blocks.shape[-1]))
            header = {k: v.reshape(*blocks.shape[:2], -1) for k, v in parts.header.items()}
            return parts.quants.reshape(len(blocks), -1), header
        assert source.format.to_groups is not None, f"{packed.name} is not a format of floats"
        source, rows = source.format.to_groups(blocks), slice(None)
    header = {"scale": source.scales[rows, :, None]}
    if packed.has_min:
        assert source.mins is not None, f"{packed.name} has minima"
        header["min"] = source.mins[rows, :, None]
    return _unsigned(packed, source.layout, source.quants[rows]), header


def _unsigned(packed: PackedFormat, layout: QuantLayout, quants: NDArray[np.int8]) -> U8:
    """The elements u, uint8 [n, K], of planes."""
    if layout.bits == 4:
        return unpack(quants.view(np.uint8)).reshape(len(quants), -1)
    values = quants.reshape(len(quants), -1)
    if packed.table:
        order = np.argsort(packed.table)
        sorted_values = np.array(packed.table)[order]
        return order[np.searchsorted(sorted_values, values)].astype(np.uint8)
    return (values.astype(np.int16) + (packed.zero - layout.zero_point)).astype(np.uint8)


def _in_tiles(numbers: Array) -> Array:
    """[n, …] → [tiles, 16, …], filled up with zeros."""
    num_tiles = -(-len(numbers) // TILE_ROWS)
    padded = np.zeros((num_tiles * TILE_ROWS, *numbers.shape[1:]), numbers.dtype)
    padded[: len(numbers)] = numbers
    return padded.reshape(num_tiles, TILE_ROWS, *numbers.shape[1:])


def _field_bytes(field: Field, numbers: Array) -> U8:
    """[n, S, count] → [tiles, S, bytes], exactly."""
    with np.errstate(over="ignore", invalid="ignore"):
        stored = numbers.astype(field.dtype)
    same = (stored.astype(numbers.dtype) == numbers) | (numbers != numbers)
    assert same.all(), f"{field.name} is not exact as {field.dtype}: it has another layout"
    turned = np.ascontiguousarray(_in_tiles(stored).transpose(0, 2, 3, 1))
    raw: U8 = turned.view(np.uint8).reshape(*turned.shape[:2], field.num_bytes)
    return raw


def _element_bytes(packed: PackedFormat, elements: Array) -> U8:
    """[n, K] → uint8 [tiles, B, bytes of a block]."""
    tiles = _in_tiles(elements)
    num_blocks = elements.shape[1] // BLOCK
    if packed.is_float:
        pair = 2 if packed.name == "bf16" else 1
        columns = tiles.reshape(len(tiles), TILE_ROWS, num_blocks * BLOCK // pair, pair)
        turned = np.ascontiguousarray(columns.transpose(0, 2, 1, 3))
        return turned.view(np.uint8).reshape(len(tiles), num_blocks, -1)
    by_quad = tiles.reshape(len(tiles), TILE_ROWS, num_blocks, _QUADS, 4)
    quads = np.ascontiguousarray(by_quad.transpose(0, 2, 3, 1, 4))
    quads = quads.reshape(len(tiles), num_blocks, _QUADS, 64)
    if packed.bits == 8:
        return quads.reshape(len(tiles), num_blocks, 512)
    parts = [(quads[:, :, 0::2] & 15) | (quads[:, :, 1::2] << 4)]
    if packed.bits > 4:
        width = packed.bits - 4
        each = 8 // width  # quads whose upper bits share a byte
        shifts = np.arange(each, dtype=np.uint8)[:, None] * np.uint8(width)
        upper = (quads >> 4).reshape(len(tiles), num_blocks, width, each, 64) << shifts
        parts.append(np.bitwise_or.reduce(upper, axis=3))
    return np.concatenate([p.reshape(len(tiles), num_blocks, -1) for p in parts], axis=2)


def _element_values(packed: PackedFormat, raw: U8, num_cols: int) -> F32:
    """The inverse of `_element_bytes`: float32 [tiles, 16, K], u less its zero or what it means."""
    num_tiles, num_blocks = len(raw), num_cols // BLOCK
    if packed.is_float:
        pair = 2 if packed.name == "bf16" else 1
        stored = raw.view({"f32": "<f4", "f16": "<f2", "bf16": "<u2"}[packed.name])
        turned = stored.reshape(num_tiles, num_cols // pair, TILE_ROWS, pair).transpose(0, 2, 1, 3)
        values = turned.reshape(num_tiles, TILE_ROWS, num_cols)
        if packed.name == "bf16":
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values.astype(np.float32)
    data = raw.reshape(num_tiles, num_blocks, -1)
    if packed.bits == 8:
        quads = data.reshape(num_tiles, num_blocks, _QUADS, 64)
    else:
        nibbles = data[:, :, :256].reshape(num_tiles, num_blocks, _QUADS // 2, 64)
        quads = np.stack([nibbles & 15, nibbles >> 4], axis=3)
        quads = quads.reshape(num_tiles, num_blocks, _QUADS, 64)
    if packed.bits in (5, 6):
        width = packed.bits - 4
        shifts = np.arange(8 // width, dtype=np.uint8)[:, None] * np.uint8(width)
        upper = data[:, :, 256:].reshape(num_tiles, num_blocks, width, 1, 64) >> shifts
        upper = (upper & np.uint8((1 << width) - 1)).reshape(quads.shape)
        quads = quads | np.left_shift(upper, 4, dtype=np.uint8)
    if packed.table:
        centred = np.array(packed.table, np.float32)[quads]
    else:
        centred = quads.astype(np.float32) - np.float32(packed.zero)
    by_row = centred.reshape(num_tiles, num_blocks, _QUADS, TILE_ROWS, 4).transpose(0, 3, 1, 2, 4)
    return np.ascontiguousarray(by_row).reshape(num_tiles, TILE_ROWS, num_cols)
