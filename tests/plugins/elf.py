"""As much of an ELF object file as the tests ask about: its sections and its symbols."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

MACHINES = {0x3E: "x86_64", 0xB7: "aarch64", 0xE0: "amdgpu"}
_SHT_SYMTAB = 2
_SHF_WRITE, _SHF_ALLOC, _SHF_TLS = 0x1, 0x2, 0x400


@dataclass(frozen=True)
class Section:
    name: str
    kind: int
    flags: int
    num_bytes: int
    data: bytes
    link: int

    @property
    def is_writable(self) -> bool:
        return bool(self.flags & (_SHF_WRITE | _SHF_TLS)) and bool(self.flags & _SHF_ALLOC)


@dataclass(frozen=True)
class Symbol:
    name: str
    is_global: bool
    is_undefined: bool


@dataclass(frozen=True)
class Elf:
    arch: str
    sections: list[Section]
    symbols: list[Symbol]

    @property
    def undefined(self) -> set[str]:
        return {s.name for s in self.symbols if s.is_undefined and s.name}

    @property
    def functions(self) -> set[str]:
        """What other files may call."""
        return {s.name for s in self.symbols if s.is_global and not s.is_undefined}


def read_elf(path: Path) -> Elf:
    """Read a 64-bit little-endian ELF file."""
    data = path.read_bytes()
    assert data[:6] == b"\x7fELF\x02\x01", f"{path} is not a 64-bit little-endian ELF file"
    (machine,) = struct.unpack_from("<H", data, 0x12)
    (at,) = struct.unpack_from("<Q", data, 0x28)
    entry_bytes, count, names = struct.unpack_from("<HHH", data, 0x3A)
    headers = [struct.unpack_from("<IIQQQQII", data, at + i * entry_bytes) for i in range(count)]
    contents = [data[h[4] : h[4] + h[5]] for h in headers]
    sections = [
        Section(_text(contents[names], h[0]), h[1], h[2], h[5], content, h[6])
        for h, content in zip(headers, contents, strict=True)
    ]
    tables = [s for s in sections if s.kind == _SHT_SYMTAB]
    symbols = [
        Symbol(_text(sections[table.link].data, name), info >> 4 != 0, section == 0)
        for table in tables
        for name, info, _, section, _, _ in struct.iter_unpack("<IBBHQQ", table.data)
    ]
    return Elf(MACHINES[machine], sections, symbols)


def _text(strings: bytes, at: int) -> str:
    return strings[at : strings.index(b"\0", at)].decode()
