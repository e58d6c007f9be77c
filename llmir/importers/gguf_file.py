"""The GGUF container: one file, its metadata and its tensors as views of the mapped bytes.

    "GGUF"  u32 version  u64 tensor count  u64 metadata count
    metadata      (string key, u32 type, value) × metadata count
    tensor infos  (string name, u32 n_dims, u64 dims[n_dims], u32 type, u64 offset) × tensor count
    padding to general.alignment (default 32)
    tensor data   each at its offset from here, a multiple of the alignment

Versions 2 and 3, little endian.  dims[0] is the contiguous dimension, so the
row-major shape is dims reversed.  Spec: ggml-org/ggml, docs/gguf.md.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmir import formats
from llmir.errors import CorruptModelError, ModelNotFoundError, UnsupportedModelError
from llmir.formats.base import U8, Weight
from llmir.importers.gguf_cursor import Cursor, Value
from llmir.importers.gguf_metadata import Metadata, describe

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMS = 4
DEFAULT_ALIGNMENT = 32
_HEADER_BYTES = 24
# The least a metadata pair and a tensor info can take: what their counts are checked against.
_MIN_PAIR_BYTES = 8 + 4 + 1
_MIN_INFO_BYTES = 8 + 4 + 8 + 4 + 8


@dataclass(frozen=True, slots=True, kw_only=True)
class GGUFFile:
    """One GGUF file.

    metadata:  the key-value pairs
    weights:   name in the file → Weight; `raw` is a read-only view of the mapped file
    """

    path: Path
    metadata: Metadata
    weights: Mapping[str, Weight]


def read_gguf(path: Path) -> GGUFFile:
    """Map a GGUF file and read all but its tensor data.

    Raises:
        ModelNotFoundError: there is no such file.
        CorruptModelError: it is no GGUF file, is truncated, or contradicts itself.
        UnsupportedModelError: its version, byte order or a tensor's type is not supported.
    """
    data = _map_file(path)
    source = path.name
    cursor = Cursor(data.data, source)
    tensor_count, pair_count = _read_header(cursor)
    metadata = Metadata(_read_pairs(cursor, pair_count), source)
    weights = _read_tensors(cursor, tensor_count, data, _alignment(metadata))
    return GGUFFile(path=path, metadata=metadata, weights=weights)


def _map_file(path: Path) -> U8:
    if not path.is_file():
        kind = "a directory" if path.is_dir() else "not there"
        raise ModelNotFoundError(f"{path} should be a GGUF file, but is {kind}")
    try:
        if os.path.getsize(path) == 0:  # which cannot be mapped
            raise CorruptModelError(f"{path.name} should be a GGUF file, but is empty")
        # A plain ndarray: slicing numpy.memmap, a subclass, costs several times as much.
        return np.memmap(path, np.uint8, mode="r").view(np.ndarray)
    except OSError as error:
        raise ModelNotFoundError(f"{path} cannot be read: {error.strerror}") from error


def _read_header(cursor: Cursor) -> tuple[int, int]:
    """The counts of tensors and of metadata pairs."""
    source = cursor.source
    magic = bytes(cursor.buffer[:4])
    if magic != MAGIC[: len(magic)]:
        raise CorruptModelError(
            f"{source} should begin with the magic {MAGIC!r}, but begins with {magic!r}; "
            f"it is not a GGUF file"
        )
    if len(cursor.buffer) < _HEADER_BYTES:
        raise CorruptModelError(
            f"{source} has {len(cursor.buffer)} bytes, less than a GGUF header's {_HEADER_BYTES}; "
            f"it is truncated: download or convert it again"
        )
    cursor.position = 4
    version = cursor.u32("the version")
    if version and version & 0xFFFF == 0:
        raise UnsupportedModelError(
            f"{source} is a big-endian GGUF file; llmir reads little-endian ones: "
            f"convert it with gguf_convert_endian"
        )
    if version not in VERSIONS:
        known = ", ".join(map(str, VERSIONS))
        raise UnsupportedModelError(
            f"{source} has GGUF version {version}; llmir reads versions {known}"
        )
    tensor_count = cursor.count("the number of tensors", item_bytes=_MIN_INFO_BYTES)
    pair_count = cursor.count("the number of metadata pairs", item_bytes=_MIN_PAIR_BYTES)
    return tensor_count, pair_count


def _read_pairs(cursor: Cursor, count: int) -> dict[str, Value]:
    pairs: dict[str, Value] = {}
    for index in range(count):
        key = cursor.string(f"the key of metadata pair {index}")
        shown = describe(key)
        if key in pairs:
            raise CorruptModelError(f"{cursor.source}: the metadata key {shown} is there twice")
        kind = cursor.u32(f"the type of {shown}")
        pairs[key] = cursor.value(kind, f"metadata {shown}")
    return pairs


def _alignment(metadata: Metadata) -> int:
    alignment = metadata.get_int("general.alignment")
    if alignment is None:
        return DEFAULT_ALIGNMENT
    if not 1 <= alignment <= 1 << 30 or alignment & (alignment - 1):
        raise CorruptModelError(
            f"{metadata.source}: general.alignment should be a power of two, but is {alignment}"
        )
    return alignment


@dataclass(frozen=True, slots=True, kw_only=True)
class _TensorInfo:
    name: str
    dims: tuple[int, ...]  # as in the file: contiguous first
    ggml_type: int
    offset: int  # from the beginning of the data section


def _read_tensors(cursor: Cursor, count: int, data: U8, alignment: int) -> dict[str, Weight]:
    infos = [_read_info(cursor, index) for index in range(count)]
    data_start = -(-cursor.position // alignment) * alignment
    weights: dict[str, Weight] = {}
    for info in infos:
        if info.name in weights:
            raise CorruptModelError(
                f"{cursor.source}: the tensor {describe(info.name)} is there twice"
            )
        weights[info.name] = _view(info, data, data_start, alignment, cursor.source)
    return weights


def _read_info(cursor: Cursor, index: int) -> _TensorInfo:
    name = cursor.string(f"the name of tensor {index}")
    what = f"the description of tensor {describe(name)}"
    n_dims = cursor.u32(what)
    if not 1 <= n_dims <= MAX_DIMS:
        raise CorruptModelError(
            f"{cursor.source}: tensor {describe(name)} should have 1 to {MAX_DIMS} dimensions, "
            f"but has {n_dims}"
        )
    dims = tuple(cursor.u64(what) for _ in range(n_dims))
    return _TensorInfo(name=name, dims=dims, ggml_type=cursor.u32(what), offset=cursor.u64(what))


def _view(info: _TensorInfo, data: U8, data_start: int, alignment: int, source: str) -> Weight:
    where = f"{source}: tensor {describe(info.name)}"
    try:
        fmt = formats.from_ggml_type(info.ggml_type)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{where}: {error}") from error
    if 0 in info.dims or info.dims[0] % fmt.block_size:
        raise CorruptModelError(
            f"{where} has dimensions {list(info.dims)}; each should be at least 1 and the first "
            f"a multiple of {fmt.name}'s block size {fmt.block_size}"
        )
    if info.offset % alignment:
        raise CorruptModelError(
            f"{where} has offset {info.offset}, which should be a multiple of the file's "
            f"alignment {alignment}"
        )
    nbytes = math.prod(info.dims) // fmt.block_size * fmt.block_bytes
    start = data_start + info.offset
    if start + nbytes > data.size:
        raise CorruptModelError(
            f"{where} has dimensions {list(info.dims)} in {fmt.name}, bytes {start} to "
            f"{start + nbytes}, but the file has {data.size}; it is truncated or damaged: "
            f"download or convert it again"
        )
    raw = data[start : start + nbytes]
    return Weight(name=info.name, shape=info.dims[::-1], format=fmt, raw=raw)
