"""Every block format against the `gguf` package's own dequantiser, bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from llmir import formats

BLOCK_FORMATS = [n for n in formats.names() if not formats.get(n).is_float]
NUM_BLOCKS = 4000

# Where a block's float16 fields begin (scale, then min where there is one): read off ggml's
# structs, so that random blocks can be given scales that are neither inf nor NaN.
HALVES = {
    "q4_0": (0,),
    "q4_1": (0, 2),
    "q5_0": (0,),
    "q5_1": (0, 2),
    "q8_0": (0,),
    "iq4_nl": (0,),
    "q2_k": (80, 82),
    "q3_k": (108,),
    "q4_k": (0, 2),
    "q5_k": (0, 2),
    "q6_k": (208,),
}

# 0, the smallest and the largest subnormal, the smallest normal, 1, the largest; then negated
EDGE_HALVES = np.array(
    [
        0x0000,
        0x0001,
        0x03FF,
        0x0400,
        0x3C00,
        0x7BFF,
        0x8000,
        0x8001,
        0x83FF,
        0x8400,
        0xBC00,
        0xFBFF,
    ],
    np.uint16,
).view(np.float16)


def with_halves(name: str, blocks: np.ndarray, *values: np.ndarray) -> np.ndarray:
    """`blocks` with their float16 fields set to `values`, one array [B] per field."""
    for at, value in zip(HALVES[name], values, strict=True):
        blocks[:, at : at + 2] = value.astype("<f2")[:, None].view(np.uint8)
    return blocks


def random_blocks(name: str, count: int = NUM_BLOCKS, seed: int = 0) -> np.ndarray:
    """Random bytes; every finite float16 pattern is as likely a scale as any other."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (count, formats.get(name).block_bytes), np.uint8)
    bits = rng.integers(0, 0x7C00, (len(HALVES[name]), count), np.uint16)
    sign = rng.integers(0, 2, bits.shape, np.uint16) << 15
    return with_halves(name, blocks, *(bits | sign).view(np.float16))


def edge_blocks(name: str) -> np.ndarray:
    """Every pair of edge scales × bytes all zero, all one, each bit alone, alternating."""
    fmt = formats.get(name)
    fills = np.array([0, 0xFF, 0x0F, 0xF0, 0x55, 0xAA, *(1 << b for b in range(8))], np.uint8)
    num = len(EDGE_HALVES)
    d, m = (x.ravel() for x in np.meshgrid(EDGE_HALVES, EDGE_HALVES))
    blocks = np.repeat(fills, num * num)[:, None] * np.ones(fmt.block_bytes, np.uint8)
    values = (np.tile(d, len(fills)), np.tile(m, len(fills)))
    return with_halves(name, blocks, *values[: len(HALVES[name])])


def expected(name: str, blocks: np.ndarray) -> np.ndarray:
    kind = gguf.GGMLQuantizationType(formats.get(name).ggml_type)
    return gguf.quants.dequantize(blocks, kind).reshape(len(blocks), -1)


def assert_same_bits(got: np.ndarray, want: np.ndarray) -> None:
    """Equal as bit patterns, so that -0 differs from +0."""
    assert got.dtype == want.dtype == np.float32
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


def dequantize_groups(name: str, blocks: np.ndarray, num_rows: int) -> np.ndarray:
    to_groups = formats.get(name).to_groups
    assert to_groups is not None
    return to_groups(blocks.reshape(num_rows, -1, blocks.shape[-1])).dequantize()


@pytest.mark.parametrize("name", BLOCK_FORMATS)
@pytest.mark.parametrize("make", [random_blocks, edge_blocks])
def test_values_are_those_of_gguf(name, make):
    blocks = make(name)
    want = expected(name, blocks)
    assert np.isfinite(want).all()
    assert_same_bits(formats.get(name).dequantize(blocks), want)
    num_rows = 7 if len(blocks) % 7 == 0 else 8
    assert_same_bits(dequantize_groups(name, blocks, num_rows), want.reshape(num_rows, -1))


@pytest.mark.parametrize("name", BLOCK_FORMATS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_block_whatever(name, data):
    """Any bytes at all: equal where finite, not finite in the same places, no warning."""
    size = formats.get(name).block_bytes
    blocks = data.draw(hnp.arrays(np.uint8, st.tuples(st.integers(1, 3), st.just(size))))
    with np.errstate(all="ignore"):
        want = expected(name, blocks)
    got = formats.get(name).dequantize(blocks)
    np.testing.assert_array_equal(got, want)  # NaN equals NaN here
    np.testing.assert_array_equal(dequantize_groups(name, blocks, 1).ravel(), want.ravel())


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_inf_and_nan_scales_come_through_without_a_warning(name):
    blocks = random_blocks(name, 4)
    bad = np.array([0x7C00, 0xFC00, 0x7E00, 0x7D01], np.uint16).view(np.float16)
    with_halves(name, blocks, *[bad] * len(HALVES[name]))
    assert not np.isfinite(formats.get(name).dequantize(blocks)).all()


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_planes_have_the_promised_layout(name):
    fmt = formats.get(name)
    blocks = random_blocks(name, 6)
    groups = fmt.to_groups(blocks.reshape(2, 3, -1))
    k = 3 * fmt.block_size
    assert groups.layout == fmt.layout
    assert groups.shape == (2, k)
    assert groups.quants.dtype == np.int8
    assert groups.quants.shape == (2, k // fmt.layout.group_size, fmt.layout.group_bytes)
    assert groups.scales.dtype == np.float32
    assert (groups.mins is not None) == fmt.layout.has_mins
    for plane in (groups.quants, groups.scales, groups.mins):
        if plane is not None:
            assert plane.flags.c_contiguous
            assert not np.shares_memory(plane, blocks)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("q4_0", (4, 32, 8, False)),
        ("q4_1", (4, 32, 0, True)),
        ("q5_0", (8, 32, 0, False)),
        ("q5_1", (8, 32, 0, True)),
        ("q8_0", (8, 32, 0, False)),
        ("iq4_nl", (8, 32, 0, False)),
        ("q2_k", (4, 16, 0, True)),
        ("q3_k", (4, 16, 4, False)),
        ("q4_k", (4, 32, 0, True)),
        ("q5_k", (8, 32, 0, True)),
        ("q6_k", (8, 16, 0, False)),
    ],
)
def test_layouts(name, layout):
    """Kernels are written for these layouts: a change here is a change of the artifact."""
    got = formats.get(name).layout
    assert (got.bits, got.group_size, got.zero_point, got.has_mins) == layout


def test_a_tensor_of_many_chunks_is_no_different(monkeypatch):
    from llmir.formats import packing

    for name in BLOCK_FORMATS:
        blocks = random_blocks(name, 50)
        whole = formats.get(name).dequantize(blocks)
        with monkeypatch.context() as patch:
            patch.setattr(packing, "CHUNK_ELEMENTS", 3 * formats.get(name).block_size)
            assert_same_bits(formats.get(name).dequantize(blocks), whole)
            assert_same_bits(dequantize_groups(name, blocks, 5).reshape(whole.shape), whole)


def test_no_blocks_at_all():
    for name in formats.names():
        fmt = formats.get(name)
        assert fmt.dequantize(np.empty((0, fmt.block_bytes), np.uint8)).shape == (0, fmt.block_size)
