"""The safetensors reader: what it maps, and every lie a header can tell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from llmir.errors import CorruptModelError
from llmir.importers.safetensors_file import MAX_HEADER_BYTES, read_safetensors


def build(header: Any, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_reads_what_safetensors_writes(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    arrays = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.arange(4, dtype=np.float16),
        "empty": np.zeros((0, 3), dtype=np.float32),
        "ids": np.arange(3, dtype=np.int64),
        "scalar": np.array(3.5, dtype=np.float32),
    }
    path.write_bytes(save(arrays, metadata={"format": "pt"}))
    tensors = read_safetensors(path)
    assert tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        assert tensors[name].shape == array.shape
        assert tensors[name].raw.tobytes() == array.tobytes()
        assert tensors[name].path == path
    assert tensors["ids"].dtype == "I64"
    np.testing.assert_array_equal(tensors["b"].as_weight().dequantize(), arrays["b"])


def test_data_need_not_be_aligned(tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    header = json.dumps({"a": entry(shape=[2], offsets=[0, 8])}).encode()
    values = np.array([1.5, -2.0], dtype=np.float32)
    path.write_bytes(build(header + b" " * (len(header) % 2 == 0), values.tobytes()))
    weight = read_safetensors(path)["a"].as_weight()
    assert weight.raw.ctypes.data % 2 == 1
    np.testing.assert_array_equal(weight.dequantize(), values)


CASES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "0 bytes is too short for a safetensors file"),
    "short": (b"\x01\0\0", "3 bytes is too short"),
    "length beyond the file": (
        b"\x10\0\0\0\0\0\0\0{}",
        "the header claims 16 bytes; the file has 2",
    ),
    "length of 2**63": (b"\0\0\0\0\0\0\0\x80{}", "the header claims 9223372036854775808 bytes"),
    "not JSON": (build(b"{'a'}"), "the safetensors header is not valid JSON"),
    "not UTF-8": (build(b'{"\xff": 1}'), "the safetensors header is not valid JSON"),
    "a pickle": (b"\x80\x02}q\0." * 20, "the header claims"),
    "deep": (build(b"[" * 100_000), "the safetensors header is not valid JSON"),
    "a list": (build([]), "the safetensors header is not a JSON object"),
    "a name twice": (
        build(b'{"a": {}, "a": {}}'),
        "header is not valid JSON: a name appears twice",
    ),
    "no object": (build({"a": 3}), "entry for tensor 'a' is not an object"),
    "no dtype": (build({"a": {}}), "tensor 'a' has dtype None, which safetensors has not"),
    "dtype": (build({"a": entry("F33")}), "tensor 'a' has dtype 'F33', which safetensors has not"),
    "shape": (build({"a": entry(shape=[-2])}), r"has shape \[-2\], expected a list of sizes"),
    "shape of floats": (build({"a": entry(shape=[2.0])}), r"has shape \[2.0\], expected a list"),
    "shape of bools": (build({"a": entry(shape=[True])}), r"has shape \[True\], expected a list"),
    "offsets": (build({"a": entry(offsets=[8, 0])}), r"has data_offsets \[8, 0\], expected"),
    "three offsets": (
        build({"a": entry(offsets=[0, 4, 8])}),
        r"data_offsets \[0, 4, 8\], expected",
    ),
    "wrong size": (
        build({"a": entry(shape=[3])}, bytes(8)),
        r"tensor 'a' of dtype F32 and shape \[3\] needs 12 bytes, but data_offsets give it 8",
    ),
    "overflowing shape": (
        build({"a": entry(shape=[2**62, 2**62])}, bytes(8)),
        f"needs {2**126} bytes, but data_offsets give it 8",
    ),
    "truncated data": (
        build({"a": entry()}, bytes(7)),
        "tensor 'a' ends at byte 8 of the data, which has 7. The file is truncated",
    ),
    "trailing data": (build({"a": entry()}, bytes(9)), "1 bytes follow the last tensor"),
    "gap": (
        build({"a": entry(), "b": entry(offsets=[12, 20])}, bytes(20)),
        "tensor 'b' begins at 12, expected 8",
    ),
    "overlap": (
        build({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12)),
        "tensor 'b' begins at 4, expected 8",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_refuses(name: str, tmp_path: Path) -> None:
    content, message = CASES[name]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(CorruptModelError, match=message) as caught:
        read_safetensors(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_the_length_is_checked_before_memory_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "sparse.safetensors"
    with path.open("wb") as file:
        file.write((MAX_HEADER_BYTES + 1).to_bytes(8, "little"))
        file.truncate(4 * MAX_HEADER_BYTES)
    with pytest.raises(CorruptModelError, match=f"the format allows {MAX_HEADER_BYTES}"):
        read_safetensors(path)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CorruptModelError, match="cannot be read: No such file or directory"):
        read_safetensors(tmp_path / "absent.safetensors")
    with pytest.raises(CorruptModelError, match="cannot be read: Is a directory"):
        read_safetensors(tmp_path)


GOOD = save({"a": np.arange(6, dtype=np.float32), "b": np.ones((2, 2), dtype=np.float16)})


@settings(max_examples=300, deadline=None, database=None)
@given(
    edits=st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=4),
    cut=st.integers(0, len(GOOD)),
    tail=st.binary(max_size=4),
)
def test_mutated_files_give_our_error_or_tensors_inside_the_file(
    edits: list[tuple[int, int]], cut: int, tail: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray(GOOD)
    for position, value in edits:
        content[position] = value
    content = content[: cut if cut % 3 == 0 else len(content)] + tail
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    path.write_bytes(content)
    try:
        tensors = read_safetensors(path)
    except CorruptModelError:
        return
    assert sum(tensor.raw.size for tensor in tensors.values()) < len(content)
