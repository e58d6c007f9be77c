"""A reader of GGUF's primitive values that never looks past the end of the file.

Every length in a GGUF file is a 64-bit number that a damaged or hostile file
chooses freely.  Each is compared with the bytes that are left before anything
is allocated or any loop begins, so that reading costs time and memory in
proportion to the file and not to what it claims.

Layout of a value (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md):

    scalar   little endian, 1 to 8 bytes
    string   u64 length in bytes, then UTF-8
    array    u32 element type, u64 count, then the elements with no padding
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmir.errors import CorruptModelError, UnsupportedModelError

# A metadata value: arrays of numbers become numpy views, arrays of strings lists.
Value = int | float | bool | str | list[str] | NDArray[Any]

_BOOL, _STRING, _ARRAY = 7, 8, 9
# value type id → struct code; numpy's dtype code is the same letter
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_SCALAR_STRUCTS = {kind: struct.Struct("<" + code) for kind, code in _SCALARS.items()}
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_LENGTH_BYTES = 8

# The largest vocabulary in use has about a quarter of a million tokens.  A string costs
# Python some 60 bytes, so this bounds a list to 1 GiB whatever the size of the file.
MAX_STRINGS = 1 << 24


class Cursor:
    """A position in a buffer.

    Args:
        buffer: the whole file, bytes.
        source: how messages call the file.
    """

    def __init__(self, buffer: memoryview, source: str) -> None:
        self.buffer = buffer
        self.source = source
        self.position = 0

    @property
    def remaining(self) -> int:
        return len(self.buffer) - self.position

    def _advance(self, size: int, what: str) -> int:
        """Step over `size` bytes and return where they begin."""
        start = self.position
        if size > self.remaining:
            raise CorruptModelError(
                f"{self.source}: {what} needs {size} bytes at offset {start}, but the file has "
                f"{self.remaining} left; it is truncated or damaged: download or convert it again"
            )
        self.position = start + size
        return start

    def u32(self, what: str) -> int:
        return _U32.unpack_from(self.buffer, self._advance(4, what))[0]

    def u64(self, what: str) -> int:
        return _U64.unpack_from(self.buffer, self._advance(8, what))[0]

    def count(self, what: str, *, item_bytes: int) -> int:
        """A u64 count of things that take at least `item_bytes` each in the rest of the file."""
        count = self.u64(what)
        if count * item_bytes > self.remaining:
            raise CorruptModelError(
                f"{self.source}: {what} is {count}, at least {count * item_bytes} bytes, but the "
                f"file has {self.remaining} left; it is truncated or damaged: download or "
                f"convert it again"
            )
        return count

    def string(self, what: str) -> str:
        length = self.u64(what)
        start = self._advance(length, what)
        try:
            return str(self.buffer[start : start + length], "utf-8")
        except UnicodeDecodeError as error:
            raise CorruptModelError(
                f"{self.source}: {what} at offset {start} is not UTF-8 ({error.reason}); "
                f"the file is damaged: download or convert it again"
            ) from error

    def value(self, kind: int, what: str) -> Value:
        """A value of the type whose id is `kind`."""
        if kind in _SCALARS:
            if kind == _BOOL:
                return bool(self.flags(1, what)[0])
            layout = _SCALAR_STRUCTS[kind]
            return layout.unpack_from(self.buffer, self._advance(layout.size, what))[0]
        if kind == _STRING:
            return self.string(what)
        if kind == _ARRAY:
            return self.array(what)
        raise CorruptModelError(
            f"{self.source}: {what} has value type {kind}; GGUF has types 0 to 12"
        )

    def array(self, what: str) -> list[str] | NDArray[Any]:
        kind = self.u32(what)
        if kind == _ARRAY:
            raise UnsupportedModelError(
                f"{self.source}: {what} is an array of arrays, which llmir does not read"
            )
        if kind == _STRING:
            count = self.count(what, item_bytes=_LENGTH_BYTES)
            if count > MAX_STRINGS:
                raise UnsupportedModelError(
                    f"{self.source}: {what} has {count} strings; llmir reads {MAX_STRINGS} at most"
                )
            return [self.string(what) for _ in range(count)]
        if kind not in _SCALARS:
            raise CorruptModelError(
                f"{self.source}: {what} has elements of value type {kind}; GGUF has types 0 to 12"
            )
        size = _SCALAR_STRUCTS[kind].size
        count = self.count(what, item_bytes=size)
        if kind == _BOOL:
            return self.flags(count, what)
        start = self._advance(count * size, what)
        return np.frombuffer(self.buffer, "<" + _SCALARS[kind], count, start)

    def flags(self, count: int, what: str) -> NDArray[np.bool_]:
        """`count` bytes that must each be 0 or 1."""
        start = self._advance(count, what)
        raw = np.frombuffer(self.buffer, np.uint8, count, start)
        if raw.size and raw.max() > 1:
            raise CorruptModelError(
                f"{self.source}: {what} is a bool with the value {raw.max()}, not 0 or 1"
            )
        return raw.view(np.bool_)
