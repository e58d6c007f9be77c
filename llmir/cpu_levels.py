"""ISA levels: the instruction sets that the C kernels are compiled for, one object each.

plugins/build.py compiles plugins/cpu for every level of this list into
`objects/cpu/<level>/llmir_cpu.o`.  A level belongs to what runs it: x86-64-v4 without VNNI
(Skylake-SP) has none of its own and takes the kernels of x86-64-v3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from llmir.errors import CompileError
from llmir.host import HostCpu, is_amx, missing_here, normal_feature

OBJECTS = Path(__file__).parent / "objects"
OBJECT_FILE = "llmir_cpu.o"
_SEARCH_PATH = "--iree-hal-executable-object-search-path"


@dataclass(frozen=True, slots=True, kw_only=True)
class IsaLevel:
    """What a set of kernels needs of a CPU, and what IREE's own code around them may use.

    name:           "x86-64-v4-vnni", …
    arch:           "x86_64" or "aarch64"
    llvm_cpu:       iree-compile's CPU for this level …
    llvm_features:  … and the features beyond that CPU's
    features:       LLVM's names of what a CPU must have to run the kernels, as far as one
                    CPU of the architecture has it and another does not
    """

    name: str
    arch: str
    llvm_cpu: str
    llvm_features: tuple[str, ...] = ()
    features: tuple[str, ...] = ()

    @property
    def uses_amx(self) -> bool:
        return any(is_amx(f) for f in self.features)


_SSE = ("sse3", "ssse3", "sse4.1", "sse4.2")
_V3 = (*_SSE, "avx", "avx2", "bmi2", "f16c", "fma", "movbe", "popcnt")
_V4 = (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
_BF16 = ("avx512vnni", "avx512bf16")
_I8MM = ("dotprod", "i8mm")

# Within an architecture, better ones last.  IREE's own code does without AMX's tiles.
LEVELS = (
    IsaLevel(name="x86-64-v3", arch="x86_64", llvm_cpu="x86-64-v3", features=_V3),
    IsaLevel(
        name="x86-64-v4-vnni",
        arch="x86_64",
        llvm_cpu="x86-64-v4",
        llvm_features=("avx512vnni",),
        features=(*_V4, "avx512vnni"),
    ),
    IsaLevel(
        name="x86-64-v4-vnni-bf16",
        arch="x86_64",
        llvm_cpu="x86-64-v4",
        llvm_features=_BF16,
        features=(*_V4, *_BF16),
    ),
    IsaLevel(
        name="x86-64-v4-amx",
        arch="x86_64",
        llvm_cpu="x86-64-v4",
        llvm_features=_BF16,
        features=(*_V4, *_BF16, "amx-tile", "amx-int8", "amx-bf16"),
    ),
    IsaLevel(name="aarch64-neon", arch="aarch64", llvm_cpu="generic"),
    IsaLevel(
        name="aarch64-dotprod-i8mm",
        arch="aarch64",
        llvm_cpu="generic",
        llvm_features=_I8MM,
        features=_I8MM,
    ),
)


def level(name: str) -> IsaLevel:
    """The level of that name; a name that is not there is our own mistake."""
    return next(x for x in LEVELS if x.name == name)


def host_level() -> IsaLevel | None:
    """The best level that this process may use on this machine, if any."""
    return _best(lambda x: not missing_here(x.arch, x.features))


def level_within(arch: str, features: Iterable[str]) -> IsaLevel | None:
    """The best level that needs no more than these LLVM features, if any."""
    cpu = HostCpu(arch=arch, model="", features=frozenset(map(normal_feature, features)))
    return _best(lambda x: not cpu.missing(x.arch, x.features))


def _best(fits: Callable[[IsaLevel], bool]) -> IsaLevel | None:
    fitting = [x for x in LEVELS if fits(x)]
    return fitting[-1] if fitting else None


def rank(level: IsaLevel | None) -> int:
    """Where a level stands among those of its architecture; below all where there is none."""
    return -1 if level is None else LEVELS.index(level)


def object_path(level: IsaLevel) -> Path:
    """The object file with a level's kernels.  Raises CompileError if it was not built."""
    path = OBJECTS / "cpu" / level.name / OBJECT_FILE
    if not path.is_file():
        raise CompileError(
            f"no kernels for {level.name}: {path} is not there; "
            "run `make plugins`, or install llmir again"
        )
    return path


def object_flags(level: IsaLevel) -> tuple[str, ...]:
    """The flags with which iree-compile takes this level's object for OBJECT_FILE.

    The path is relative to OBJECTS' parent, where compiler.iree_compile calls it: flags
    go into manifests and cache keys, which are the same on every machine.
    Raises CompileError if the object was not built.
    """
    directory = object_path(level).parent.relative_to(OBJECTS.parent)
    return (f"{_SEARCH_PATH}={directory.as_posix()}",)


def takes_objects(flags: Iterable[str]) -> bool:
    """Whether these are flags of a module with C kernels in it: `object_flags` among them."""
    return any(f.startswith(_SEARCH_PATH) for f in flags)
