"""Compile the C kernels: plugins/cpu/llmir_cpu.c, once per ISA level.

    python plugins/build.py               llmir/objects/cpu/<level>/llmir_cpu.o, where out of date,
                                          and what build_vulkan.py makes, if this machine can
    python plugins/build.py --level NAME  of one level only; repeatable
    python plugins/build.py --shared DIR  DIR/<level>.so as well, for this machine's architecture

The compiler is the clang of PyPI's `ziglang`: the same on every machine, it compiles for all
of them, and it brings no header or library but its own.  The result depends on the sources,
the flags and ziglang's version alone; a digest of these lies beside each object.  setup.py
builds the same way when the package is installed or made into a wheel.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "plugins" / "cpu"
OBJECTS = ROOT / "llmir" / "objects" / "cpu"
UNIT = "llmir_cpu.c"  # the one translation unit; it includes the others

FLAGS = (
    "-O3 -g0 -std=c17 -ffreestanding -fPIC -fomit-frame-pointer "
    # No section that the loader would have to relocate or that nothing here can use.
    "-fno-unwind-tables -fno-asynchronous-unwind-tables -fno-ident "
    # Nothing that calls a function which no one defines.
    "-fno-stack-protector -fno-sanitize=all -fno-math-errno "
    # IREE's code calls the kernels directly, by no table; and no product and sum become one
    # rounding where C says two.
    "-fvisibility=hidden -ffp-contract=off "
    "-Wall -Wextra -Werror"
).split()

# Callers align the stack to 16 bytes.  Of itself clang leaves vectors that it spills wherever that
# puts them: a matmul took up to a third longer, by luck, where they lay across cache lines.
FLAGS_OF_ARCH = {"x86_64": ["-mstackrealign", "-mstack-alignment=64"], "aarch64": []}


@dataclass(frozen=True)
class Level:
    """An ISA level: zig's architecture and -mcpu.  The C code knows its level by its macros."""

    name: str
    arch: str
    mcpu: str


LEVELS = (
    Level("x86-64-v3", "x86_64", "x86_64_v3"),
    Level("x86-64-v4-vnni", "x86_64", "x86_64_v4+avx512vnni"),
    Level("x86-64-v4-vnni-bf16", "x86_64", "x86_64_v4+avx512vnni+avx512bf16"),
    Level(
        "x86-64-v4-amx",
        "x86_64",
        "x86_64_v4+avx512vnni+avx512bf16+amx_tile+amx_int8+amx_bf16",
    ),
    Level("aarch64-neon", "aarch64", "generic"),
    Level("aarch64-dotprod-i8mm", "aarch64", "generic+dotprod+i8mm"),
)


class BuildError(Exception):
    """The compiler refused; its messages are the text."""


def build_objects(levels: Sequence[Level] = LEVELS) -> list[Path]:
    """Compile the levels that are out of date into OBJECTS/<level>/; returns those compiled.

    As many at a time as the machine has cores.
    Raises BuildError with the compiler's messages; that level's object is gone then.
    """
    paths = [_object(level) for level in levels]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        compiled = list(threads.map(_compile, levels, paths))
    return [path for path, done in zip(paths, compiled, strict=True) if done]


def link_shared(level: Level, output: Path) -> Path:
    """Link a level's object, which `build_objects` made, into a shared library for ctypes.

    It is the code that ships, byte for byte; every function that is not static can be called.
    """
    made = _object(level)
    output.parent.mkdir(parents=True, exist_ok=True)
    target = ["-target", f"{level.arch}-linux-gnu", "-nostdlib", "-shared"]
    with tempfile.TemporaryDirectory(prefix="llmir-link-") as scratch:
        seen = Path(scratch) / made.name
        seen.write_bytes(_all_visible(made.read_bytes()))
        _zig_cc([*target, str(seen), "-o", str(output.resolve())])
    return output


def _all_visible(elf: bytes) -> bytes:
    """A 64-bit little-endian ELF object whose hidden global symbols are no longer hidden."""
    SYMTAB, GLOBAL, HIDDEN, SECTION_BYTES, SYMBOL_BYTES = 2, 1, 2, 64, 24
    data = bytearray(elf)
    (sections_at,) = struct.unpack_from("<Q", data, 0x28)
    (num_sections,) = struct.unpack_from("<H", data, 0x3C)
    for section in range(sections_at, sections_at + num_sections * SECTION_BYTES, SECTION_BYTES):
        (kind,) = struct.unpack_from("<I", data, section + 4)
        if kind != SYMTAB:
            continue
        start, size = struct.unpack_from("<QQ", data, section + 0x18)
        for symbol in range(start, start + size, SYMBOL_BYTES):
            if data[symbol + 4] >> 4 == GLOBAL and data[symbol + 5] == HIDDEN:
                data[symbol + 5] = 0
    return bytes(data)


def level_of(name: str) -> Level:
    """The level of that name; the KeyError lists those there are."""
    known = {level.name: level for level in LEVELS}
    if name not in known:
        raise KeyError(f"no level {name!r}; there are: {', '.join(known)}")
    return known[name]


def _object(level: Level) -> Path:
    return OBJECTS / level.name / UNIT.replace(".c", ".o")


def _compile(level: Level, path: Path) -> bool:
    """Bring one object up to date; whether there was anything to do."""
    command = ["-target", f"{level.arch}-freestanding", f"-mcpu={level.mcpu}", *FLAGS]
    command += FLAGS_OF_ARCH[level.arch]
    stamp = path.with_suffix(".sha256")
    digest = _digest(command)
    if path.exists() and stamp.exists() and stamp.read_text() == digest:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    # Whoever is interrupted in here leaves no stamp, and none that belongs to other code.
    stamp.unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        made = Path(scratch) / path.name
        # The source by a relative name: no path of this machine goes into the object.
        _zig_cc([*command, "-c", UNIT, "-o", str(made)])
        os.replace(made, path)
    stamp.write_text(digest)
    return True


def _digest(command: Sequence[str]) -> str:
    """Of all that an object depends on."""
    digest = hashlib.sha256(repr([metadata.version("ziglang"), *command]).encode())
    for source in sorted([*SOURCES.glob("*.c"), *SOURCES.glob("*.h")]):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return digest.hexdigest()


def _zig_cc(arguments: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="llmir-zig-") as cache:
        done = subprocess.run(
            [sys.executable, "-m", "ziglang", "cc", *arguments],
            cwd=SOURCES,
            env={**os.environ, "ZIG_LOCAL_CACHE_DIR": cache, "ZIG_GLOBAL_CACHE_DIR": cache},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        raise BuildError(f"zig cc {' '.join(arguments)}\n{done.stderr}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile the C kernels for every ISA level.")
    parser.add_argument("--shared", type=Path, metavar="DIR", help="link shared libraries as well")
    parser.add_argument("--level", action="append", choices=[level.name for level in LEVELS])
    options = parser.parse_args()
    shared = options.shared
    levels = [level_of(name) for name in options.level or []] or LEVELS
    try:
        for path in build_objects(levels):
            print(f"compiled {path.relative_to(ROOT)}")
        if shared is not None:
            for level in levels:
                if level.arch == platform.machine().lower().replace("arm64", "aarch64"):
                    print(f"linked {link_shared(level, shared / f'{level.name}.so')}")
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0 if options.level else _build_others()


def _build_others() -> int:
    """The kernels of other targets; what cannot be built here is named and left out."""
    import build_gpu  # beside this file, which is where a script finds modules
    import build_vulkan

    if reason := build_vulkan.missing_tool():
        print(f"left out: {reason}", file=sys.stderr)
    elif failed := build_vulkan.main():
        return failed
    return build_gpu.main([])


if __name__ == "__main__":
    sys.exit(main())
