"""Calls of iree-compile, in a process of its own: it crashes on some inputs, and can be killed."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmir.cpu_levels import OBJECTS
from llmir.errors import CompileError


@dataclass(frozen=True, slots=True)
class CpuCode:
    """What the code of a CPU module may use: LLVM's CPU name, architecture and features."""

    name: str
    arch: str
    features: tuple[str, ...]


def to_stream(mlir: str, flags: Sequence[str]) -> str:
    """Lower a module to IREE's stream dialect, where copies and allocations show."""
    return _run(mlir, [*flags, "--compile-to=stream"]).decode()


def to_module(stream: str, flags: Sequence[str], output: Path) -> None:
    """Compile what `to_stream` gave to a .vmfb."""
    _run(stream, [*flags, "--compile-from=stream"], output)


def cpu_code(stream: str) -> CpuCode:
    """What a CPU module was compiled for, as its stream IR says."""
    match = re.search(r'cpu = "([^"]*)", cpu_features = "([^"]*)"', stream)
    triple = re.search(r'target_triple = "([^"-]*)', stream)
    if match is None or triple is None:
        raise CompileError("the compiled module does not say what CPU it is for")
    enabled = (f for f in match[2].split(",") if f.startswith("+"))
    return CpuCode(match[1], triple[1], tuple(f[1:] for f in enabled))


def _run(mlir: str, flags: Sequence[str], output: Path | None = None) -> bytes:
    from iree.compiler import tools

    with tempfile.TemporaryDirectory(prefix="llmir-") as scratch:
        (Path(scratch) / "module.mlir").write_text(mlir, encoding="utf-8")
        # cpu_levels.object_flags name the C kernels from here.
        (Path(scratch) / OBJECTS.name).symlink_to(OBJECTS)
        result = (output or Path(scratch) / "out").absolute()
        tool = tools.binaries.find_tool("iree-compile")
        # The source's name goes into the module's debug information: a relative one, so that
        # the same source gives the same bytes.
        command = [tool, "module.mlir", *flags, "-o", str(result)]
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise CompileError(
                f"iree-compile {' '.join(flags)} failed with exit code {done.returncode}:\n"
                + _first_errors(done.stderr)
            )
        return b"" if output else result.read_bytes()


def _first_errors(text: str, num_lines: int = 12) -> str:
    """The lines that say what is wrong: diagnostics repeat the IR after them, at length."""
    lines = [x[:400] for x in text.splitlines() if "error:" in x] or text.splitlines()
    return "\n".join(x[:400] for x in lines[:num_lines])
