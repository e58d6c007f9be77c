"""Calls of C kernels for 64-bit Arm under qemu: as native.py makes them, by driver.c.

The driver is a static program with the level's object linked in.  One process makes the calls of
all dispatches, each on memory of its own: qemu translates a kernel once.
"""

from __future__ import annotations

import atexit
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
_DONE = struct.pack("<Q", 0x600D)
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


class Process:
    """A driver under qemu; a failure ends it, and the next case gets another."""

    def __init__(self, name: str) -> None:
        program, self.numbers = driver(name)
        self.directory = Path(tempfile.mkdtemp(prefix="llmir-driver-"))
        path = self.directory / name
        path.write_bytes(program)
        path.chmod(0o700)
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        self.process = subprocess.Popen(
            [QEMU, "-cpu", "max", path], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self.errors, bufsize=0,
        )  # fmt: skip

    def answer(self, case: bytes, num_bytes: int) -> bytes:
        """What the driver writes for a case; shorter than that if it ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            left = memoryview(case)
            while left:
                left = left[self.process.stdin.write(left) or 0 :]
        except BrokenPipeError:
            return b""
        found = bytearray()
        while len(found) < num_bytes:
            part = self.process.stdout.read(num_bytes - len(found))
            if not part:
                break
            found += part
        return bytes(found)

    def close(self) -> int:
        """Its exit status."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        status = self.process.wait()
        self.process.stdout.close()
        shutil.rmtree(self.directory)
        return status

    def said(self) -> str:
        self.errors.seek(0)
        return self.errors.read().decode(errors="replace")


_processes: dict[str, Process] = {}


def process(name: str) -> Process:
    """The running driver of a level."""
    if name not in _processes:
        _processes[name] = Process(name)
    return _processes[name]


@atexit.register
def _close_all() -> None:
    for running in _processes.values():
        running.close()
        running.errors.close()


@dataclass
class Emulated:
    """A level's kernels under qemu; the fields are those of Native."""

    level: str
    at_end: bool = True
    poison: int = 0xFF
    seed: int = 0
    called: set[str] = field(default_factory=set)

    def __call__(self, dispatch: Dispatch) -> None:
        self.called.add(dispatch.function)
        running = process(self.level)
        written = [dispatch.tensors[i] for i in sorted(dispatch.written)]
        num_bytes = sum(tensor.nbytes for tensor in written) + len(_DONE)
        answer = running.answer(self._case(dispatch, running.numbers), num_bytes)
        if not answer.endswith(_DONE) or len(answer) < num_bytes:
            del _processes[self.level]
            status = running.close()
            why = _FAILURES.get(status, f"exit status {status}")
            with running.errors:
                raise AssertionError(f"{dispatch.function}: {why}; {running.said()}")
        at = 0
        for tensor in written:
            raw = np.frombuffer(answer, np.uint8, tensor.nbytes, at)
            tensor.reshape(-1).view(np.uint8)[:] = raw
            at += tensor.nbytes

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
            "<6Q", numbers[dispatch.function], len(dispatch.tensors), len(kinds), len(order),
            written, 0,
        )  # fmt: skip
        return header + body
