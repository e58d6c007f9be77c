"""What is inside a .vmfb, read with nothing of llmir's: formats, machines and entry points."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

ELF = b"\x7fELF\x02\x01"
EM_AMDGPU, EM_AARCH64 = 224, 183
# EF_AMDGPU_MACH of LLVM's AMDGPUUsage, the low byte of an ELF header's e_flags.
AMDGPU_MACH = {"gfx942": 0x4C, "gfx1100": 0x41}


def executables(vmfb: Path) -> list[bytes]:
    """The device code in a module: neither its bytecode nor its constants."""
    with zipfile.ZipFile(vmfb) as archive:
        names = [n for n in archive.namelist() if n != "module.fb" and not n.endswith(".bin")]
        return [archive.read(name) for name in names]


def ptx_entries(code: bytes, arch: str) -> list[str]:
    """The kernels of PTX text, which says what it is for."""
    version = re.search(rb"\.version (\d+)\.(\d+)\n\.target (\w+)\n\.address_size 64\n", code)
    assert version is not None, "no PTX"
    assert version[3].decode() == arch
    return [name.decode() for name in re.findall(rb"\.entry ([\w$]+)\(", code)]


def hsaco_entries(code: bytes, arch: str) -> list[str]:
    """The kernels of an AMD code object: for each there is a descriptor, NAME.kd."""
    elf = code[code.index(ELF) :]
    assert int.from_bytes(elf[18:20], "little") == EM_AMDGPU
    assert elf[48] == AMDGPU_MACH[arch]
    # IREE's objects name an environment, "unknown"; ours have none.
    assert re.search(rb"-amd-amdhsa-(unknown)?-?" + arch.encode(), elf)
    return sorted({name.decode() for name in re.findall(rb"\0([\w$]+)\.kd(?=\0)", elf)})


def msl_entries(code: bytes) -> list[str]:
    """The kernels of Metal's shading language, as text."""
    assert b"#include <metal_stdlib>" in code
    return [name.decode() for name in re.findall(rb"kernel void ([\w$]+)\(", code)]


def aarch64_entries(code: bytes) -> list[str]:
    """A shared object for 64-bit Arm: the dispatches that its library lists, and the C kernels."""
    assert code[:6] == ELF
    assert int.from_bytes(code[18:20], "little") == EM_AARCH64
    assert b"iree_hal_executable_library_query\0" in code
    names = re.findall(rb"\0(step[\w$]*_dispatch_[\w$]+|llmir_\w+)(?=\0)", code)
    return sorted({name.decode() for name in names})
