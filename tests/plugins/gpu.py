"""The build of the GPU kernels, and a unit's kernels emulated on this machine."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent.parent
_MOST_ARGUMENTS = 16


@functools.cache
def load_build_gpu() -> ModuleType:
    """plugins/build_gpu.py, which is no part of any package."""
    path = ROOT / "plugins" / "build_gpu.py"
    spec = importlib.util.spec_from_file_location("plugins_build_gpu", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["plugins_build_gpu"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def emulated(unit_name: str) -> ctypes.CDLL:
    """The kernels of a unit as functions of this machine: plugins/cuda/emulated.h."""
    build = load_build_gpu()
    unit = next(u for u in build.UNITS if u.name == unit_name)
    library = ROOT / ".cache" / "emulated" / f"{unit_name}-{build.emulated_digest(unit)[:16]}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(prefix="llmir-emulated-") as scratch:
            made = build.build_emulated(unit, Path(scratch) / library.name)
            library.parent.mkdir(parents=True, exist_ok=True)
            partial = library.with_suffix(f".{os.getpid()}")
            shutil.copy(made, partial)
            partial.replace(library)
    loaded = ctypes.CDLL(str(library))
    loaded.llmir_emulate.restype = ctypes.c_char_p
    loaded.llmir_emulate.argtypes = [
        ctypes.c_void_p, *[ctypes.c_uint32] * 4, ctypes.POINTER(ctypes.c_uint64),
    ]  # fmt: skip
    return loaded


def call(
    unit_name: str, function: str, grid: Sequence[int], threads: int, arguments: Sequence[int]
) -> None:
    """Run a kernel for a grid; arguments: addresses and numbers.  AssertionError if it hangs."""
    library = emulated(unit_name)
    assert len(arguments) <= _MOST_ARGUMENTS, f"{function} has {len(arguments)} arguments"
    words = (ctypes.c_uint64 * _MOST_ARGUMENTS)(*arguments)
    kernel = ctypes.cast(getattr(library, function), ctypes.c_void_p)
    wrong = library.llmir_emulate(kernel, threads, *grid, words)
    assert wrong is None, f"{function}: {wrong.decode()}"
