"""f32, f16 and bf16 against numpy and torch, over every bit pattern where there are 65,536."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from llmir import formats
from llmir.formats.floats import to_bf16

EVERY_16_BITS = np.arange(1 << 16, dtype=np.uint16)


def assert_same_numbers(got: np.ndarray, want: np.ndarray) -> None:
    """Bit-equal but for NaNs, which only have to be NaNs."""
    assert got.dtype == want.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    keep = ~np.isnan(want)
    np.testing.assert_array_equal(got[keep].view(np.uint32), want[keep].view(np.uint32))


@pytest.mark.parametrize(("name", "dtype"), [("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_widening_is_torchs_for_every_pattern(name, dtype):
    want = torch.from_numpy(EVERY_16_BITS.view(np.int16)).view(dtype).float().numpy()
    got = formats.get(name).dequantize(EVERY_16_BITS.view(np.uint8).reshape(-1, 2))
    assert_same_numbers(got.ravel(), want)


def test_f32_is_a_copy_of_the_bits_even_when_misaligned_and_read_only():
    values = np.array([0.0, -0.0, 1.5, np.inf, 1e-45, np.finfo(np.float32).max], np.float32)
    raw = np.frombuffer(b"x" + values.tobytes(), np.uint8)[1:]
    got = formats.get("f32").dequantize(raw.reshape(-1, 4)).ravel()
    assert got.flags.writeable
    assert got.flags.aligned
    assert not np.shares_memory(got, raw)
    np.testing.assert_array_equal(got.view(np.uint32), values.view(np.uint32))


@given(hnp.arrays(np.uint32, st.integers(1, 64)))
@settings(max_examples=200, deadline=None)
def test_narrowing_to_bf16_is_torchs(bits):
    values = bits.view(np.float32)
    got = torch.from_numpy(to_bf16(values).view(np.int16)).view(torch.bfloat16)
    want = torch.from_numpy(values.copy()).to(torch.bfloat16)
    assert_same_numbers(got.float().numpy(), want.float().numpy())


def test_narrowing_around_every_bf16_value():
    """Each bf16, exactly, just below, at and just above half way to the next."""
    upper = EVERY_16_BITS.astype(np.uint32)[:, None] << 16
    bits = (upper | np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)).ravel()
    values = bits.view(np.float32)
    got = torch.from_numpy(to_bf16(values).view(np.int16)).view(torch.bfloat16).float().numpy()
    want = torch.from_numpy(values).to(torch.bfloat16).float().numpy()
    assert_same_numbers(got, want)


def test_a_nan_with_only_low_payload_bits_stays_a_nan_with_its_sign():
    values = np.array([0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFFFFFFF], np.uint32).view(np.float32)
    bits = to_bf16(values)
    assert ((bits & 0x7FFF) > 0x7F80).all()
    assert (bits >> 15).tolist() == [0, 1, 0, 1]
