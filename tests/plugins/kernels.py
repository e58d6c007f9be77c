"""The build of the C kernels, and a level's kernels to call through ctypes."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import sys
import tempfile
from pathlib import Path
from types import ModuleType

from llmir.cpu_levels import LEVELS, IsaLevel, level
from llmir.host import missing_here

ROOT = Path(__file__).parent.parent.parent


@functools.cache
def load_build() -> ModuleType:
    """plugins/build.py, which is no part of any package."""
    spec = importlib.util.spec_from_file_location("plugins_build", ROOT / "plugins" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    # By its name too: a dataclass looks there for what its annotations mean.
    module = sys.modules["plugins_build"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def levels_here() -> list[IsaLevel]:
    """The levels whose code this process may run; asks the kernel for AMX."""
    return [x for x in LEVELS if not missing_here(x.arch, x.features)]


@functools.cache
def kernels(name: str) -> ctypes.CDLL:
    """The kernels of a level as a library, built from the sources as they are now."""
    assert level(name) in levels_here()
    build = load_build()
    build.build_objects([build.level_of(name)])
    with tempfile.TemporaryDirectory(prefix="llmir-kernels-") as directory:
        return ctypes.CDLL(str(build.link_shared(build.level_of(name), Path(directory) / "k.so")))
