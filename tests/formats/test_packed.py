"""Packed matrices: what is packed is what was there, by llmir's dequantiser and the gguf package's."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmir import formats
from llmir.formats import GroupQuantized, QuantLayout, packed

from .test_dequantize import HALVES, random_blocks, with_halves

FORMATS = sorted(packed.FORMATS)
OF_FILES = [name for name in FORMATS if name in formats.names() and name in HALVES]
OWN = [name for name in FORMATS if name.startswith("int")]
FLOATS = ["bf16", "f16", "f32"]


def columns_of(name: str, count: int) -> int:
    return count * (packed.FORMATS[name].section or packed.BLOCK)


def weight_of(name: str, num_rows: int, num_cols: int, seed: int) -> formats.Weight:
    """A matrix of any blocks, its float16 fields sane, as a file has it."""
    count = num_rows * num_cols // formats.get(name).block_size
    rng = np.random.default_rng(seed)
    if name in FLOATS:
        raw = rng.standard_normal((num_rows, num_cols), np.float32)
        raw = raw.view(np.uint16)[:, 1::2] if name == "bf16" else raw.astype(f"f{raw.itemsize}")
        raw = raw.astype(np.float16) if name == "f16" else raw
        raw = np.ascontiguousarray(raw).view(np.uint8)
    else:
        raw = random_blocks(name, count, seed)
        with_halves(name, raw, *(rng.uniform(-2, 2, count).astype("f2") for _ in HALVES[name]))
    shape, fmt = (num_rows, num_cols), formats.get(name)
    return formats.Weight(name="w", shape=shape, format=fmt, raw=raw.reshape(-1))


def planes_of(name: str, num_rows: int, num_cols: int, seed: int) -> GroupQuantized:
    """Planes of a layout that is no file's."""
    packing, rng = packed.FORMATS[name], np.random.default_rng(seed)
    g, bits = packing.section or num_cols, packing.bits
    zero_point = 8 if bits == 4 and not packing.has_min else 0
    layout = QuantLayout(bits=bits, group_size=g, zero_point=zero_point, has_mins=packing.has_min)
    groups = (num_rows, num_cols // g)
    return GroupQuantized(
        layout=layout,
        quants=rng.integers(-128, 128, (*groups, layout.group_bytes)).astype(np.int8),
        scales=rng.standard_normal(groups, np.float32),
        mins=rng.standard_normal(groups, np.float32) if packing.has_min else None,
    )


def source_of(name: str, rows: int, cols: int, seed: int) -> formats.Weight | GroupQuantized:
    return (planes_of if name in OWN else weight_of)(name, rows, cols, seed)


SHAPES = st.integers(1, 50), st.integers(1, 5), st.integers(0, 1000)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=20, deadline=None)
@given(*SHAPES)
def test_unpacked_is_what_was_packed(name: str, rows: int, blocks: int, seed: int) -> None:
    cols = columns_of(name, blocks)
    source = source_of(name, rows, cols, seed)
    data = packed.pack_matrix(name, source)
    assert data.dtype == np.uint8
    assert data.nbytes == packed.FORMATS[name].num_bytes(rows, cols)
    unpacked = packed.unpack_matrix(name, data, rows, cols)
    assert unpacked.dtype == np.float32
    np.testing.assert_array_equal(unpacked, source.dequantize())
    if isinstance(source, formats.Weight):
        quant = gguf.GGMLQuantizationType[name.upper()]
        np.testing.assert_array_equal(
            unpacked, gguf.quants.dequantize(source.blocks().reshape(rows, -1), quant)
        )


def test_packed_piece_by_piece_is_packed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("q6_k", "int4_g64_zp", "bf16"):
        source = source_of(name, 77, 512, 3)
        at_once = packed.pack_matrix(name, source)
        monkeypatch.setattr(packed, "CHUNK_ELEMENTS", 512 * 16 * 2)
        np.testing.assert_array_equal(packed.pack_matrix(name, source), at_once)
        monkeypatch.undo()


@pytest.mark.parametrize("name", FORMATS)
def test_rows_beyond_the_last_are_zeros(name: str) -> None:
    source = source_of(name, 19, 256, 0)
    data = packed.pack_matrix(name, source)
    np.testing.assert_array_equal(packed.unpack_matrix(name, data, 32, 256)[19:] * 1.0, 0)


@pytest.mark.parametrize("name", [*OF_FILES, *FLOATS])
def test_a_matrix_has_the_bits_of_its_format_and_no_more(name: str) -> None:
    size = formats.get(name).num_bytes((16, 1024), "w")
    # Scales and minima of six bits are bytes: 4 bytes of a super-block and row.
    wider = 16 * 4 * 4 if name in ("q4_k", "q5_k") else 0
    assert packed.FORMATS[name].num_bytes(16, 1024) == size + wider


def test_the_packed_format_of_planes() -> None:
    def found(name: str, bits: int, g: int, zero_point: int = 0, mins: bool = False) -> str | None:
        layout = QuantLayout(bits=bits, group_size=g, zero_point=zero_point, has_mins=mins)
        return packed.format_of(name, layout, 512)

    assert found("q6_k", 8, 16) == "q6_k"
    assert found("int4-g32", 4, 32, 8) == "int4_g32"
    assert found("int4-g64-zp", 4, 64, 0, mins=True) == "int4_g64_zp"
    assert found("int8", 8, 512) == "int8"
    assert found("", 8, 512) == "int8"
    assert found("", 4, 128, 8) == "int4_g128"
    assert found("", 4, 64, 0, mins=True) == "int4_g64_zp"
    assert found("", 4, 16, 8) is None
    assert found("", 4, 128, 3, mins=True) is None
    assert found("q2_k", 4, 16, 0, mins=True) is None
    assert found("", 8, 32) is None


def test_matrices_below_each_other_and_in_turn() -> None:
    first, second = (weight_of("q4_1", 32, 64, seed) for seed in (1, 2))
    a, b = (packed.pack_matrix("q4_1", p) for p in (first, second))
    both = packed.unpack_matrix("q4_1", packed.concatenate([a, b]), 64, 64)
    np.testing.assert_array_equal(both, np.concatenate([first.dequantize(), second.dequantize()]))
    turns = packed.unpack_matrix("q4_1", packed.concatenate([a, b], in_turn=True), 64, 64)
    tiles = [p.dequantize().reshape(2, 16, 64) for p in (first, second)]
    np.testing.assert_array_equal(turns, np.stack(tiles, axis=1).reshape(64, 64))
