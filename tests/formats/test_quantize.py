"""Rounding: ggml's own formats byte for byte, llmir's within half a step, and refusals."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from llmir import formats
from llmir.errors import CorruptModelError, UnknownNameError, UnsupportedModelError
from llmir.formats.legacy import quantize_q4_0, quantize_q8_0

QUANTIZERS = {
    "q4_0": (quantize_q4_0, gguf.GGMLQuantizationType.Q4_0),
    "q8_0": (quantize_q8_0, gguf.GGMLQuantizationType.Q8_0),
}
ROUNDED = ["q8_0", "q4_0", "int8", "int4-g32", "int4-g64", "int4-g32-zp", "int4-g64-zp"]


def weight(values: np.ndarray, fmt: str = "f32", name: str = "w") -> formats.Weight:
    raw = {
        "f32": lambda v: v.astype("<f4"),
        "f16": lambda v: v.astype("<f2"),
        "bf16": lambda v: (v.astype("<f4").view("<u4") >> 16).astype("<u2"),
    }[fmt](values)
    raw = raw.reshape(-1).view(np.uint8)
    return formats.Weight(name=name, shape=values.shape, format=formats.get(fmt), raw=raw)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def gguf_bytes(name: str, values: np.ndarray) -> np.ndarray:
    return gguf.quants.quantize(values, QUANTIZERS[name][1])


def assert_gguf_bytes(name: str, values: np.ndarray) -> None:
    values = values.reshape(-1, 32)
    np.testing.assert_array_equal(QUANTIZERS[name][0](values), gguf_bytes(name, values))


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("scale", [1e-9, 1e-6, 1e-3, 1.0, 1e4])
def test_bytes_are_those_of_gguf(name, scale):
    assert_gguf_bytes(name, normal(3000, 32) * np.float32(scale))


@pytest.mark.parametrize("name", QUANTIZERS)
def test_bytes_are_those_of_gguf_at_ties_and_edges(name):
    ties = np.arange(-127.5, 127.5, 0.5, dtype=np.float32)[:480].reshape(-1, 32)
    ties[:, 0] = 127  # the scale is then 1, or -127/8
    just_below = np.full(32, np.nextafter(np.float32(0.5), np.float32(0)))
    just_below[0] = 127
    blocks = [
        *ties,
        just_below,
        -just_below,
        np.zeros(32),
        np.full(32, -0.0),
        np.full(32, 1.0),
        np.full(32, -1.0),
        np.array([1.0, -1.0] * 16),  # the first of equal magnitudes decides q4_0's sign
        np.array([-1.0, 1.0] * 16),
        np.array([65504.0 * 8] + [-65504.0] * 31),  # the largest float16 scale of q4_0
        np.array([1e-30] * 32),
        np.array([3e-8 * 127] * 32),  # about half the smallest float16
    ]
    assert_gguf_bytes(name, np.array(blocks, np.float32))


# Where a block's largest magnitude is below 1e-36 or so, 1/d is infinite in gguf, and what it
# then casts to an integer is undefined.
SIZES = st.floats(2.0**-100, 4e5, width=32) | st.sampled_from([0.0, 0.5, 1.5, 2.5, 127.0, 8.0])


@pytest.mark.parametrize("name", QUANTIZERS)
@settings(max_examples=150, deadline=None)
@given(sizes=hnp.arrays(np.float32, (2, 32), elements=SIZES), negative=hnp.arrays(bool, (2, 32)))
def test_bytes_are_those_of_gguf_for_anything_normal(name, sizes, negative):
    assert_gguf_bytes(name, np.where(negative, -sizes, sizes))


@pytest.mark.parametrize("name", QUANTIZERS)
def test_subnormal_blocks_become_zero(name):
    tiny = np.full((1, 32), 1e-44, np.float32)
    tiny[0, 5] = 0
    assert not formats.get(name).dequantize(QUANTIZERS[name][0](tiny)).any()


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("fmt", ["f32", "f16", "bf16"])
def test_quantize_gives_the_planes_of_those_bytes(name, fmt):
    w = weight(normal(5, 96), fmt)
    got = formats.quantize(w, name)
    blocks = gguf_bytes(name, w.dequantize()).reshape(5, 3, -1)
    want = formats.get(name).to_groups(blocks)
    assert got.layout == want.layout == formats.get(name).layout
    np.testing.assert_array_equal(got.quants, want.quants)
    np.testing.assert_array_equal(got.scales, want.scales)


def test_int8_has_one_scale_per_row_and_is_within_half_a_step():
    w = normal(40, 100) * np.logspace(-6, 6, 40, dtype=np.float32)[:, None]
    w[3] = 0
    got = formats.quantize(weight(w), "int8")
    assert got.layout == formats.QuantLayout(bits=8, group_size=100)
    assert got.quants.shape == (40, 1, 100)
    assert got.scales.shape == (40, 1)
    assert np.abs(got.quants.astype(int)).max() == 127
    assert not got.dequantize()[3].any()
    error = np.abs(got.dequantize() - w)
    assert (error <= got.scales * 0.5000001).all()


def test_int8_of_a_row_so_small_that_its_scale_is_coarse_clips_and_does_not_wrap():
    smallest = np.float32(1e-45)
    w = np.array([[189, -189, 1, 0]], np.float32) * smallest  # 189 / 127 rounds to 1
    got = formats.quantize(weight(w), "int8")
    assert got.quants[0, 0].tolist() == [127, -127, 1, 0]


def test_int4_is_within_half_a_step_but_for_the_clipped_extreme():
    w = normal(40, 96) * np.logspace(-6, 6, 40, dtype=np.float32)[:, None]
    w[3] = 0
    got = formats.quantize(weight(w), "int4-g32")
    assert got.layout == formats.QuantLayout(bits=4, group_size=32, zero_point=8)
    assert got.quants.shape == (40, 3, 16)
    assert not got.dequantize()[3].any()
    scales = np.repeat(got.scales, 32, axis=1)
    clipped = w / np.where(scales == 0, 1, scales) > 7.5
    error = np.abs(got.dequantize() - w) / np.abs(scales).clip(1e-30)
    assert (error[~clipped] <= 0.500001).all()
    assert (error[clipped] <= 1.000001).all()
    assert 0 < clipped.mean() < 0.05


def test_int4_keeps_the_extreme_of_either_sign():
    w = np.zeros((2, 32), np.float32)
    w[0, 7], w[1, 9] = 3.0, -3.0
    np.testing.assert_array_equal(formats.quantize(weight(w), "int4-g32").dequantize(), w)


@pytest.mark.parametrize("group", [32, 64, 128])
def test_int4_with_a_zero_point_is_within_half_a_step(group):
    w = normal(40, 256) * np.logspace(-6, 6, 40, dtype=np.float32)[:, None] + 0.5
    w[3] = 7.25  # one number: no step, and nothing lost
    got = formats.quantize(weight(w), f"int4-g{group}-zp")
    assert got.layout == formats.QuantLayout(bits=4, group_size=group, has_mins=True)
    groups = w.reshape(40, -1, group)
    np.testing.assert_array_equal(got.mins, groups.min(axis=-1))
    np.testing.assert_allclose(got.scales, np.ptp(groups, axis=-1) / 15, rtol=1e-6)
    np.testing.assert_array_equal(got.dequantize()[3], w[3])
    step = np.repeat(got.scales, group, axis=1)
    rounding = 2.0**-22 * np.abs(w)  # of w - min and of scale q + min
    assert (np.abs(got.dequantize() - w) <= 0.5 * step + rounding).all()


@pytest.mark.parametrize("mode", ROUNDED)
def test_many_chunks_are_no_different(mode, monkeypatch):
    from llmir.formats import packing

    w = weight(normal(17, 64))
    whole = formats.quantize(w, mode)
    monkeypatch.setattr(packing, "CHUNK_ELEMENTS", 130)
    pieces = formats.quantize(w, mode)
    np.testing.assert_array_equal(pieces.quants, whole.quants)
    np.testing.assert_array_equal(pieces.scales, whole.scales)


def test_keep_returns_floats_themselves_and_blocks_as_planes():
    w = weight(normal(4, 64), "bf16")
    assert formats.quantize(w, "keep") is w
    raw = gguf_bytes("q8_0", normal(4, 64)).reshape(-1)
    q = formats.Weight(name="q", shape=(4, 64), format=formats.get("q8_0"), raw=raw)
    for mode in ("keep", "q8_0"):
        np.testing.assert_array_equal(formats.quantize(q, mode).dequantize(), q.dequantize())


def test_float_modes():
    w = weight(normal(4, 64))
    assert formats.quantize(w, "f32") is w
    narrow = formats.quantize(w, "bf16")
    assert narrow.format.name == "bf16"
    assert narrow.shape == (4, 64)
    assert narrow.raw.size == 2 * 4 * 64
    error = np.abs(narrow.dequantize() - w.dequantize())
    assert (error <= np.abs(w.dequantize()) * 2.0**-8).all()
    wide = formats.quantize(narrow, "f32")
    assert wide.format.name == "f32"
    np.testing.assert_array_equal(wide.dequantize(), narrow.dequantize())


def test_bf16_from_blocks_and_of_three_dims():
    raw = gguf_bytes("q8_0", normal(6, 64)).reshape(-1)
    q = formats.Weight(name="q", shape=(2, 3, 64), format=formats.get("q8_0"), raw=raw)
    got = formats.quantize(q, "bf16")
    assert got.shape == (2, 3, 64)
    np.testing.assert_allclose(got.dequantize(), q.dequantize(), rtol=2.0**-8)


@pytest.mark.parametrize("mode", formats.WEIGHT_MODES)
def test_vectors_are_never_rounded(mode):
    v = weight(normal(33), "f16")
    assert formats.quantize(v, mode) is v
    raw = gguf_bytes("q8_0", normal(1, 64)).reshape(-1)
    q = formats.Weight(name="q", shape=(64,), format=formats.get("q8_0"), raw=raw)
    wide = formats.quantize(q, mode)
    assert wide.format.name == "f32"
    np.testing.assert_array_equal(wide.dequantize(), q.dequantize())


@pytest.mark.parametrize("mode", ["q8_0", "q4_0", "int4-g32"])
def test_rows_that_are_not_whole_blocks_are_refused(mode):
    with pytest.raises(UnsupportedModelError) as caught:
        formats.quantize(weight(normal(2, 100), name="blk.0.odd"), mode)
    assert str(caught.value) == (
        f"tensor 'blk.0.odd': {mode} rounds rows in blocks of 32 elements, but its rows have "
        "K = 100, which is no multiple of it; use --weights int8 (one scale per row), bf16 or keep"
    )


@pytest.mark.parametrize("mode", ROUNDED)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_cannot_be_rounded_are_refused(mode, bad):
    values = normal(3, 64)
    values[1, 50] = bad
    with pytest.raises(UnsupportedModelError, match=r"'w': has values that are NaN, infinite or"):
        formats.quantize(weight(values), mode)


@pytest.mark.parametrize(("mode", "limit"), [("q8_0", 65504 * 127), ("q4_0", 65504 * 8)])
def test_values_beyond_a_float16_scale_are_refused(mode, limit):
    values = normal(1, 32)
    values[0, 0] = limit
    formats.quantize(weight(values), mode)
    values[0, 0] = limit * 1.01
    with pytest.raises(UnsupportedModelError, match="too large to be rounded to"):
        formats.quantize(weight(values), mode)


@pytest.mark.parametrize("mode", ROUNDED)
@pytest.mark.parametrize("shape", [(2, 2, 32), (0, 32), (2, 0)])
def test_only_matrices_are_quantised(mode, shape):
    with pytest.raises(UnsupportedModelError, match=r"only matrices \[N, K\]"):
        formats.quantize(weight(np.zeros(shape, np.float32)), mode)


def test_an_unknown_mode_lists_the_known():
    with pytest.raises(UnknownNameError) as caught:
        formats.quantize(weight(normal(2, 32)), "int3")
    assert str(caught.value) == (
        "unknown weight mode 'int3'; known: bf16, f32, int4-g128, int4-g128-zp, int4-g32, "
        "int4-g32-zp, int4-g64, int4-g64-zp, int8, keep, q4_0, q8_0. Did you mean int8 or int4-g32?"
    )


@pytest.mark.parametrize("mode", formats.WEIGHT_MODES[1:])
def test_a_weight_of_the_wrong_size_is_refused_in_every_mode(mode):
    short = formats.Weight(
        name="w", shape=(2, 128), format=formats.get("f16"), raw=np.zeros(511, np.uint8)
    )
    with pytest.raises(CorruptModelError, match="takes 512 bytes, but the file has 511"):
        formats.quantize(short, mode)
