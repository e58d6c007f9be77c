"""Calls of C kernels for 64-bit Arm under qemu: as native.py makes them, by driver.c.

The driver is a static program with the level's object linked in; a dispatch is one run of it.
"""

from __future__ import annotations

import functools
import random
import shutil
import struct
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from plugins.elf import read_elf
from plugins.kernels import load_build

from llmir.cpu_levels import level, object_path

from .lowered_calls import Dispatch, Offset, Pointer

QEMU = "qemu-aarch64"
_POINTER, _INTEGER, _FLOAT = range(3)
_FAILURES = {14: "written beside a buffer", -11: "a page was touched that nobody may touch"}


@functools.cache
def driver(name: str) -> tuple[bytes, dict[str, int]]:
    """driver.c with a level's kernels, and the number of each."""
    build = load_build()
    build.build_objects([build.level_of(name)])
    functions = sorted(read_elf(object_path(level(name))).functions)
    with tempfile.TemporaryDirectory(prefix="llmir-driver-") as directory:
        scratch = Path(directory)
        (scratch / "kernels.inc").write_text("".join(f"KERNEL({f})\n" for f in functions))
        source = Path(__file__).with_name("driver.c")
        flags = "-target aarch64-linux-musl -nostdlib -static -ffreestanding -fno-builtin -O1"
        flags += " -fno-stack-protector -fno-sanitize=all -Wall -Wextra -Werror"
        build._zig_cc(
            [*flags.split(), f"-I{scratch}", str(source), str(object_path(level(name))),
             "-o", str(scratch / "driver")]
        )  # fmt: skip
        return (scratch / "driver").read_bytes(), {f: i for i, f in enumerate(functions)}


def missing_qemu() -> str:
    """Why nothing can be emulated here, "" if it can."""
    return "" if shutil.which(QEMU) else f"no {QEMU}: run tools/setup.sh qemu"


@dataclass
class Emulated:
    """A level's kernels under qemu; the fields are those of Native."""

    level: str
    directory: Path
    at_end: bool = True
    poison: int = 0xFF
    seed: int = 0
    called: set[str] = field(default_factory=set)

    def __call__(self, dispatch: Dispatch) -> None:
        self.called.add(dispatch.function)
        program, numbers = driver(self.level)
        path = self.directory / self.level
        if not path.exists():
            path.write_bytes(program)
            path.chmod(0o700)
        done = subprocess.run(
            [QEMU, "-cpu", "max", path], input=self._case(dispatch, numbers), capture_output=True,
            check=False,
        )  # fmt: skip
        why = _FAILURES.get(done.returncode, f"exit status {done.returncode}")
        assert done.returncode == 0, f"{dispatch.function}: {why}; {done.stderr.decode()}"
        at = 0
        for i, tensor in enumerate(dispatch.tensors):
            raw = done.stdout[at : at + tensor.nbytes]
            at += tensor.nbytes
            if i in dispatch.written:
                tensor.reshape(-1).view(np.uint8)[:] = np.frombuffer(raw, np.uint8)
        assert at == len(done.stdout)

    def _case(self, dispatch: Dispatch, numbers: dict[str, int]) -> bytes:
        offset = 0 if self.at_end else 48
        order = list(dispatch.workgroups())
        random.Random(self.seed).shuffle(order)
        kinds, calls = [], b""
        for argument in dispatch.arguments:
            is_pointer, is_float = isinstance(argument, Pointer), isinstance(argument, float)
            kinds.append(_POINTER if is_pointer else _FLOAT if is_float else _INTEGER)
        for workgroup in order:
            values = []
            for argument in dispatch.arguments_of(workgroup):
                if isinstance(argument, Pointer):
                    before = offset * dispatch.tensors[argument.tensor].itemsize
                    values.append(argument.tensor | before << 32)
                elif isinstance(argument, Offset):
                    values.append(offset)
                elif isinstance(argument, float):
                    values.append(*struct.unpack("<I", struct.pack("<f", argument)))
                else:
                    assert isinstance(argument, int)
                    values.append(argument)
            calls += struct.pack(f"<{len(values)}Q", *values)
        shapes = b"".join(struct.pack("<2Q", t.nbytes, self.at_end) for t in dispatch.tensors)
        data = b"".join(
            bytes([self.poison]) * t.nbytes if i in dispatch.fresh else t.tobytes()
            for i, t in enumerate(dispatch.tensors)
        )
        body = shapes + struct.pack(f"<{len(kinds)}Q", *kinds) + calls + data
        written = sum(1 << i for i in dispatch.written)
        header = struct.pack(
            "<7Q", len(body) + 56, numbers[dispatch.function], len(dispatch.tensors), len(kinds),
            len(order), written, 0,
        )  # fmt: skip
        return header + body
