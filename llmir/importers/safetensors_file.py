"""Safetensors files, mapped: the header parsed and checked here, the data left on disk.

    ┌─────────┬──────────────────────────┬───────────────────────────────┐
    │ u64 LE  │ JSON, n bytes            │ data, tensors back to back    │
    │ n       │ {"name": {dtype, shape,  │ data_offsets [begin, end) are │
    │         │   data_offsets}, …}      │ relative to its first byte    │
    └─────────┴──────────────────────────┴───────────────────────────────┘

Tensors are row major and little endian, cover the data without gaps or
overlaps, and appear once.  Format: github.com/huggingface/safetensors, README.
A file that breaks any of this is refused before a byte of data is read.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmir import formats
from llmir.errors import CorruptModelError, UnsupportedModelError
from llmir.formats.base import Weight

# The format's own limit; it keeps a lying length from costing memory.
MAX_HEADER_BYTES = 100_000_000

# dtype in the file → name of the llmir format that reads it
_FORMATS = {"F32": "f32", "F16": "f16", "BF16": "bf16"}

# Bits per element of what the format defines, to check offsets against shapes.
_BITS = {"F32": 32, "F16": 16, "BF16": 16, "F64": 64, "C64": 64, "BOOL": 8}
_BITS |= {f"{sign}{bits}": bits for sign in "IU" for bits in (8, 16, 32, 64)}
_BITS |= {"F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """An entry of a file: raw is a read-only uint8 view of the mapping, flat."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    raw: NDArray[np.uint8]

    def as_weight(self) -> Weight:
        """The tensor in the format of its dtype.  Raises UnsupportedModelError by name."""
        if self.dtype not in _FORMATS:
            raise UnsupportedModelError(
                f"{self.path}: tensor {self.name!r} has dtype {self.dtype}; "
                f"supported dtypes: {', '.join(sorted(_FORMATS))}"
            )
        fmt = formats.get(_FORMATS[self.dtype])
        return Weight(name=self.name, shape=self.shape, format=fmt, raw=self.raw)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Map `path` and return its tensors by name, in the order of their data.

    Raises CorruptModelError, naming file and tensor, on anything the format does not allow.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            if len(prefix) < 8:
                raise _corrupt(path, f"{size} bytes is too short for a safetensors file")
            length = int.from_bytes(prefix, "little")
            if length > min(size - 8, MAX_HEADER_BYTES):
                raise _corrupt(
                    path,
                    f"the header claims {length} bytes; the file has {size - 8} after the "
                    f"length and the format allows {MAX_HEADER_BYTES}. Is it complete?",
                )
            header = _parse_header(path, file.read(length))
        # A mapping of the whole file: tensors then are slices, and pages are shared.
        data = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))[8 + length :]
    except OSError as error:
        raise CorruptModelError(f"{path}: cannot be read: {error.strerror or error}") from error

    entries = [_parse_entry(path, name, entry) for name, entry in header.items()]
    entries.sort(key=lambda entry: entry[3:])
    tensors: dict[str, Tensor] = {}
    position = 0
    for name, dtype, shape, begin, end in entries:
        if begin != position:
            raise _corrupt(path, f"tensor {name!r} begins at {begin}, expected {position}")
        if end > data.size:
            raise _corrupt(
                path,
                f"tensor {name!r} ends at byte {end} of the data, which has {data.size}. "
                "The file is truncated",
            )
        position = end
        tensors[name] = Tensor(name=name, dtype=dtype, shape=shape, path=path, raw=data[begin:end])
    if position != data.size:
        raise _corrupt(path, f"{data.size - position} bytes follow the last tensor")
    return tensors


def _corrupt(path: Path, message: str) -> CorruptModelError:
    return CorruptModelError(f"{path}: {message}")


def _parse_header(path: Path, raw: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name appears twice")
        return found

    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, f"the safetensors header is not valid JSON: {error}") from error
    if not isinstance(header, dict):
        raise _corrupt(path, "the safetensors header is not a JSON object")
    header.pop("__metadata__", None)
    return header


def _parse_entry(path: Path, name: str, entry: Any) -> tuple[str, str, tuple[int, ...], int, int]:
    """(name, dtype, shape, begin, end), consistent with each other."""
    if not isinstance(entry, dict):
        raise _corrupt(path, f"the header's entry for tensor {name!r} is not an object")
    dtype = entry.get("dtype")
    shape, offsets = _sizes(entry.get("shape")), _sizes(entry.get("data_offsets"))
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise _corrupt(path, f"tensor {name!r} has dtype {dtype!r}, which safetensors has not")
    if shape is None:
        raise _corrupt(
            path, f"tensor {name!r} has shape {entry.get('shape')!r}, expected a list of sizes"
        )
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _corrupt(
            path,
            f"tensor {name!r} has data_offsets {entry.get('data_offsets')!r}, "
            "expected [begin, end]",
        )
    begin, end = offsets
    bits = math.prod(shape) * _BITS[dtype]
    if bits != 8 * (end - begin):
        raise _corrupt(
            path,
            f"tensor {name!r} of dtype {dtype} and shape {shape} needs {-(-bits // 8)} bytes, "
            f"but data_offsets give it {end - begin}",
        )
    return name, dtype, tuple(shape), begin, end


def _sizes(value: Any) -> list[int] | None:
    """A JSON list of non-negative integers, or None if it is anything else."""
    # type(), not isinstance: JSON's true is an int to Python.
    if isinstance(value, list) and all(type(item) is int and item >= 0 for item in value):
        return value
    return None
