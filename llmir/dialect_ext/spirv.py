"""SPIR-V modules, as far as a kernel's specialization constants are concerned.

A shader of plugins/vulkan is compiled once.  What is static about a call (sizes, head counts,
flags) are its specialization constants, and a lowering writes their values into the module:
IREE hands it to a driver as it is, so that the driver folds them as if they had been literals.

The form is that of "SPIR-V Specification" 1.3 of Khronos, 2.3 and 3.32: 32-bit words, a header
of five, then instructions whose first word is (number of words << 16) | opcode.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

import numpy as np

from llmir.errors import CompileError

_MAGIC = 0x07230203
_HEADER_WORDS = 5
_OP_NAME, _OP_DECORATE, _OP_SPEC_CONSTANT = 5, 71, 50
_SPEC_ID = 1
LOCAL_SIZE_X = "local_size_x"
"""The name of specialization constant 0, which GLSL leaves without one."""


def specialise(module: bytes, constants: Mapping[str, int | float]) -> bytes:
    """A module whose specialization constants of these names have these values as defaults.

    A float is for a constant of type float, an int for one of int or uint.
    Raises CompileError for bytes that are no module, and for a constant that it has not.
    """
    words = np.frombuffer(module[: len(module) // 4 * 4], "<u4").copy()
    if len(words) < _HEADER_WORDS or words[0] != _MAGIC or len(module) % 4:
        raise CompileError("a Vulkan kernel is not a SPIR-V module; run `make plugins` again")
    names: dict[int, str] = {}
    is_unnamed: set[int] = set()
    places: dict[int, int] = {}  # id → where its value is
    for at, count in _instructions(words):
        opcode = int(words[at]) & 0xFFFF
        if opcode == _OP_NAME:
            names[int(words[at + 1])] = _text(words[at + 2 : at + count])
        elif opcode == _OP_DECORATE and words[at + 2] == _SPEC_ID and words[at + 3] == 0:
            is_unnamed.add(int(words[at + 1]))
        elif opcode == _OP_SPEC_CONSTANT:
            places[int(words[at + 2])] = at + 3
    known = {LOCAL_SIZE_X if x in is_unnamed else names[x]: at for x, at in places.items()}
    for name, value in constants.items():
        if name not in known:
            raise CompileError(
                f"a Vulkan kernel has no specialization constant {name!r}; it has: "
                f"{', '.join(known)}"
            )
        form = "<f" if isinstance(value, float) else "<i" if value < 0 else "<I"
        (words[known[name]],) = struct.unpack("<I", struct.pack(form, value))
    return _without_names(words).tobytes()


def _instructions(words: np.ndarray) -> Iterator[tuple[int, int]]:
    """(where it is, its number of words) of each."""
    at = _HEADER_WORDS
    while at < len(words):
        count = int(words[at]) >> 16
        if count == 0:
            raise CompileError("a Vulkan kernel has an instruction of no words")
        yield at, count
        at += count


def _without_names(words: np.ndarray) -> np.ndarray:
    """What a driver does not read is left out."""
    keep = np.ones(len(words), bool)
    for at, count in _instructions(words):
        if int(words[at]) & 0xFFFF == _OP_NAME:
            keep[at : at + count] = False
    return words[keep]


def _text(words: np.ndarray) -> str:
    return words.tobytes().split(b"\0")[0].decode()
