"""What a compiled module holds for its device: the executables inside a .vmfb.

A .vmfb is a zip archive without compression: the bytecode, `module.fb`, and one member for
each executable, which for Vulkan holds SPIR-V in words of 32 bits (SPIR-V 1.6, sections 2.3
and 3.2.30).
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

MODULE = "module.fb"
_SPIRV_MAGIC = struct.pack("<I", 0x07230203)
_HEADER_WORDS = 5
_OP_CAPABILITY = 17
# SPIR-V's capabilities that a Vulkan device may lack → the feature that gives them, as IREE's
# runtime names those of a device.  All have Shader, Matrix and the subgroup operations.
_FEATURES = {
    9: "shaderFloat16",
    10: "shaderFloat64",
    11: "shaderInt64",
    22: "shaderInt16",
    39: "shaderInt8",
    4433: "storageBuffer16BitAccess",
    4434: "uniformAndStorageBuffer16BitAccess",
    4448: "storageBuffer8BitAccess",
    4449: "uniformAndStorageBuffer8BitAccess",
    5116: "shaderBFloat16Type",
    5117: "shaderBFloat16DotProduct",
    5118: "shaderBFloat16CooperativeMatrix",
    5347: "bufferDeviceAddress",
    6016: "shaderIntegerDotProduct",
    6017: "shaderIntegerDotProduct",
    6018: "shaderIntegerDotProduct",
    6019: "shaderIntegerDotProduct",
    6022: "cooperativeMatrix",
}


def executables(vmfb: Path) -> dict[str, bytes]:
    """The executables of a module by the names of their files."""
    with zipfile.ZipFile(vmfb) as archive:
        return {name: archive.read(name) for name in archive.namelist() if name != MODULE}


def vulkan_features(vmfb: Path) -> tuple[str, ...]:
    """The features that a Vulkan device must have to run a module, sorted."""
    found = {c for code in executables(vmfb).values() for c in _capabilities(code)}
    return tuple(sorted({_FEATURES[c] for c in found if c in _FEATURES}))


def _capabilities(code: bytes) -> Iterator[int]:
    """Those of every SPIR-V module in an executable; they are a module's first instructions."""
    start = code.find(_SPIRV_MAGIC)
    while start >= 0:
        at = start + 4 * _HEADER_WORDS
        while at + 8 <= len(code):
            word, operand = struct.unpack_from("<II", code, at)
            if word & 0xFFFF != _OP_CAPABILITY:
                break
            yield operand
            at += 4 * (word >> 16)
        start = code.find(_SPIRV_MAGIC, start + 4)
