"""The registry, sizes, Weight, and the packing helpers."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from llmir import formats
from llmir.errors import CorruptModelError, UnknownNameError, UnsupportedModelError
from llmir.formats.packing import CHUNK_ELEMENTS, bit_fields, chunks

SUPPORTED = "bf16 f16 f32 iq4_nl q2_k q3_k q4_0 q4_1 q4_k q5_0 q5_1 q5_k q6_k q8_0".split()


def test_names():
    assert formats.names() == tuple(SUPPORTED)


@pytest.mark.parametrize("name", SUPPORTED)
def test_ids_and_sizes_are_those_of_gguf(name):
    fmt = formats.get(name)
    kind = gguf.GGMLQuantizationType[name.upper()]
    assert fmt.name == name
    assert fmt.ggml_type == kind
    assert formats.from_ggml_type(kind) is fmt
    assert (fmt.block_size, fmt.block_bytes) == gguf.GGML_QUANT_SIZES[kind]


def test_every_other_type_of_gguf_is_refused():
    for kind in gguf.GGMLQuantizationType:
        if kind.name.lower() not in SUPPORTED:
            with pytest.raises(UnsupportedModelError, match=f"GGUF tensor type {int(kind)} "):
                formats.from_ggml_type(int(kind))


def test_unsupported_types_are_named_as_gguf_names_them():
    for number, name in formats._UNREAD_GGML_TYPES.items():
        assert gguf.GGMLQuantizationType(number).name.lower() == name


def test_an_unknown_ggml_type_lists_the_known():
    with pytest.raises(UnsupportedModelError) as caught:
        formats.from_ggml_type(19)
    assert str(caught.value) == (
        "GGUF tensor type 19 (iq1_s) is not supported; supported types: f32 (0), f16 (1), "
        "q4_0 (2), q4_1 (3), q5_0 (6), q5_1 (7), q8_0 (8), q2_k (10), q3_k (11), q4_k (12), "
        "q5_k (13), q6_k (14), iq4_nl (20), bf16 (30); "
        "convert the file to one of these, q8_0 for example"
    )
    with pytest.raises(UnsupportedModelError, match=r"type 4294967295 \(unknown to llmir\)"):
        formats.from_ggml_type(0xFFFFFFFF)


def test_an_unknown_name_lists_the_known():
    with pytest.raises(UnknownNameError, match=r"unknown format 'q9_9'; known: bf16, f16"):
        formats.get("q9_9")


def test_num_bytes():
    q4_k = formats.get("q4_k")
    assert q4_k.num_bytes((3, 512), "w") == 3 * 2 * 144
    assert formats.get("f16").num_bytes((), "scalar") == 2
    with pytest.raises(CorruptModelError) as caught:
        q4_k.num_bytes((3, 300), "blk.1.w")
    assert str(caught.value) == (
        "tensor 'blk.1.w': q4_k stores rows in blocks of 256 elements, but its rows have 300; "
        "the file is damaged or was written wrongly"
    )


def test_num_bytes_of_sizes_that_overflow_64_bits():
    assert formats.get("f32").num_bytes((1 << 40, 1 << 40), "w") == 1 << 82


@pytest.mark.parametrize("size", [0, 67, 69])
def test_a_weight_of_the_wrong_size(size):
    w = formats.Weight(
        name="w", shape=(2, 32), format=formats.get("q8_0"), raw=np.zeros(size, np.uint8)
    )
    for use in (w.blocks, w.dequantize, lambda: formats.to_groups(w)):
        with pytest.raises(CorruptModelError) as caught:
            use()
        assert str(caught.value) == (
            f"tensor 'w': shape [2, 32] in q8_0 takes 68 bytes, but the file has {size}; "
            "the file is damaged or truncated"
        )


def test_blocks_is_a_view_and_dequantize_has_the_logical_shape():
    raw = np.arange(2 * 3 * 34, dtype=np.uint8)
    w = formats.Weight(name="w", shape=(2, 96), format=formats.get("q8_0"), raw=raw)
    assert w.blocks().shape == (2, 3, 34)
    assert np.shares_memory(w.blocks(), raw)
    assert w.dequantize().shape == (2, 96)
    scalar = formats.Weight(
        name="s", shape=(), format=formats.get("f32"), raw=np.zeros(4, np.uint8)
    )
    assert scalar.dequantize().shape == ()


def test_take_rows():
    values = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    raw = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q4_1).reshape(-1)
    w = formats.Weight(name="w", shape=(4, 64), format=formats.get("q4_1"), raw=raw)
    order = np.array([2, 0, 3])
    taken = w.take_rows(order)
    assert taken.shape == (3, 64)
    np.testing.assert_array_equal(taken.dequantize(), w.dequantize()[order])


@given(hnp.arrays(np.uint8, hnp.array_shapes(max_dims=3, max_side=9).map(lambda s: (*s, 8))))
def test_unpack_and_pack_are_inverses(packed):
    values = formats.unpack(packed)
    assert values.shape == (*packed.shape[:-1], 16)
    assert (values < 16).all()
    np.testing.assert_array_equal(formats.pack(values), packed)


def test_element_order_of_unpack():
    packed = np.array([[0x21, 0x43]], np.uint8)
    assert formats.unpack(packed).tolist() == [[1, 3, 2, 4]]


@pytest.mark.parametrize(
    "values",
    [np.zeros(3, np.uint8), np.full(4, 16, np.uint8), np.zeros(4, np.int8)],
    ids=["odd", "more than four bits", "signed"],
)
def test_pack_asserts_what_it_needs(values):
    with pytest.raises(AssertionError):
        formats.pack(values)


@given(st.binary(min_size=1, max_size=9), st.sampled_from([1, 2, 4]))
def test_bit_fields(data, bits):
    got = bit_fields(np.frombuffer(data, np.uint8), bits)
    want = [[(b >> s) % (1 << bits) for b in data] for s in range(0, 8, bits)]
    assert got.tolist() == want


@given(st.integers(0, 500), st.integers(0, 3 * CHUNK_ELEMENTS))
def test_chunks_cover_everything_once(count, each):
    slices = list(chunks(count, each))
    assert [i for s in slices for i in range(s.start, s.stop)] == list(range(count))
