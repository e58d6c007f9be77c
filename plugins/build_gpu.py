"""Compile the GPU kernels: plugins/cuda/*.cu, to PTX for NVIDIA and code objects for AMD.

    python plugins/build_gpu.py            both, where out of date:
                                             llmir/objects/cuda/sm_80/<unit>.ptx
                                             llmir/objects/hip/<gfx942|gfx1100>/<unit>.hsaco
    python plugins/build_gpu.py cuda       one of the two
    python plugins/build_gpu.py --check PTXAS
                                           and assemble every PTX with NVIDIA's ptxas, for sm_80
                                           and sm_90: registers, spills, shared memory of each

The compiler is ziglang's clang, as in build.py: it has LLVM's back ends for both, needs no CUDA or
ROCm, and downloads nothing.  A unit is a source with macros; all kernels of one are one module of
the driver, which compiles PTX when it loads it: so a unit has what an op needs and no more.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "plugins" / "cuda"
OBJECTS = ROOT / "llmir" / "objects"

# The oldest GPU whose matrix unit takes bf16, and the oldest PTX that names it: drivers since
# CUDA 11.0 load it, and compile it for newer GPUs.
CUDA_ARCH, PTX_VERSION = "sm_80", "7.0"
HIP_ARCHES = ("gfx942", "gfx1100")
PTXAS_ARCHES = ("sm_80", "sm_90")

_CXX = (
    "-x c++ -std=c++20 -O3 -ffreestanding -fno-exceptions -fno-rtti "
    # No product and sum become one rounding where the source says two.
    "-ffp-contract=off -Wall -Wextra -Werror -Wno-unused-command-line-argument"
).split()
_EMULATED = ("cc", "-fPIC", "-shared", "-nostdlib", "-fno-sanitize=all")
_KERNEL = re.compile(r"^KERNEL\((\d+)\)\s+(\w+)\(", re.MULTILINE)


@dataclass(frozen=True)
class Unit:
    """A source compiled with macros.  for_hip: whether it needs no matrix unit."""

    name: str
    source: str
    macros: tuple[str, ...] = ()
    for_hip: bool = False


MATMUL_FORMATS = {
    "q4_0": "Q4_0",
    "q4_1": "Q4_1",
    "q8_0": "Q8_0",
    "int8": "INT8_ROWS",
    "int4": "INT4",
    "int4_zp": "INT4_ZP",
    "bf16": "BF16",
}
UNITS = (
    Unit("rows", "rows.cu", for_hip=True),
    Unit("topk", "topk.cu", for_hip=True),
    Unit("pages", "pages.cu", for_hip=True),
    *(
        Unit(f"attention_{dim}", "attention.cu", (f"HEAD_DIM={dim}",))
        for dim in (64, 128)
    ),
    *(
        Unit(f"matmul_{name}_{pieces}", "matmul.cu", (f"FORMAT={form}", f"PIECES={pieces}"))
        for name, form in MATMUL_FORMATS.items()
        for pieces in (1, 3)
    ),
    *(
        Unit(f"embedding_{name}", "embedding.cu", (f"FORMAT={form}",))
        for name, form in MATMUL_FORMATS.items()
    ),
)  # fmt: skip


class BuildError(Exception):
    """The compiler refused; its messages are the text."""


def build_cuda() -> list[Path]:
    """Compile the units that are out of date to PTX; returns those compiled."""
    out = OBJECTS / "cuda" / CUDA_ARCH
    return _build([(unit, out / f"{unit.name}.ptx") for unit in UNITS], _cuda_target(), build_ptx)


def build_ptx(unit: Unit, output: Path) -> None:
    """Compile one unit, whose source may lie elsewhere."""
    include = ["-I", str(SOURCES)]
    _zig([*_cuda_target(), *_flags(unit), *include, "-S", unit.source, "-o", str(output)])
    output.write_text(_with_limits(output.read_text(), unit))


def _cuda_target() -> list[str]:
    version = PTX_VERSION.replace(".", "")
    return ["cc", "-target", "nvptx64-cuda-none", f"-mcpu={CUDA_ARCH}+ptx{version}"]


def build_hip() -> list[Path]:
    """Compile the units that need no matrix unit to code objects, for HIP_ARCHES."""
    built = []
    for arch in HIP_ARCHES:
        # Not `zig cc`: it names features of both wavefront sizes.
        target = ["clang", "--target=amdgcn-amd-amdhsa", f"-mcpu={arch}", "-nogpulib"]

        def compile_unit(unit: Unit, made: Path, target: Sequence[str] = target) -> None:
            relocatable = made.with_suffix(".o")
            _zig([*target, *_flags(unit), "-c", unit.source, "-o", str(relocatable)])
            _zig(["ld.lld", "-shared", str(relocatable), "-o", str(made)])

        out = OBJECTS / "hip" / arch
        units = [(unit, out / f"{unit.name}.hsaco") for unit in UNITS if unit.for_hip]
        built += _build(units, target, compile_unit)
    return built


def build_emulated(unit: Unit, output: Path) -> Path:
    """A shared library in which the unit's kernels are functions of this machine: emulated.h."""
    output.parent.mkdir(parents=True, exist_ok=True)
    _zig([*_EMULATED, *_flags(unit), "-O1", unit.source, "emulated.cc", "-o", str(output)])
    return output


def emulated_digest(unit: Unit) -> str:
    """Of all that `build_emulated`'s result depends on."""
    return _digest([*_EMULATED, *_flags(unit)])


def kernels_of(unit: Unit) -> dict[str, int]:
    """The kernels of a unit's source → how many threads a workgroup has."""
    found = _KERNEL.findall((SOURCES / unit.source).read_text())
    return {name: int(threads) for threads, name in found}


def assemble(ptxas: Path, path: Path, arch: str) -> str:
    """What ptxas says of a PTX file's kernels.  Raises BuildError if it does not take it."""
    with tempfile.TemporaryDirectory(prefix="llmir-ptxas-") as scratch:
        command = [ptxas, "-v", f"-arch={arch}", path, "-o", Path(scratch) / "out.cubin"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"ptxas {path.name} for {arch}\n{done.stderr}")
    return done.stderr


def resources(report: str) -> dict[str, str]:
    """kernel → "R registers, S bytes of spills, M bytes of shared memory", of `assemble`'s text."""
    found = {}
    for part in report.split("Compiling entry function '")[1:]:
        spills, registers, shared = (
            int(match[1]) if match else 0
            for match in (
                re.search(pattern, part)
                for pattern in (r"(\d+) bytes spill stores", r"Used (\d+) reg", r"(\d+) bytes smem")
            )
        )
        found[part.partition("'")[0]] = (
            f"{registers} registers, {spills} bytes of spills, {shared} bytes of shared memory"
        )
    return found


def _with_limits(ptx: str, unit: Unit) -> str:
    """PTX whose entries say how many threads they are called with: more registers for each."""
    for name, threads in kernels_of(unit).items():
        pattern = rf"(\.entry {name}\([^)]*\))"
        ptx, count = re.subn(pattern, rf"\1\n.maxntid {threads}, 1, 1", ptx)
        if count != 1:
            raise BuildError(f"{unit.name}: {count} entries {name} in its PTX")
    return ptx


def _flags(unit: Unit) -> list[str]:
    return [*_CXX, *(f"-D{macro}" for macro in unit.macros)]


def _build(units, target, compile_unit) -> list[Path]:  # type: ignore[no-untyped-def]
    def build(item: tuple[Unit, Path]) -> bool:
        unit, path = item
        stamp, digest = path.with_suffix(".sha256"), _digest([*target, *_flags(unit)])
        if path.exists() and stamp.exists() and stamp.read_text() == digest:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        # Whoever is interrupted in here leaves no stamp, and none that belongs to other code.
        stamp.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            made = Path(scratch) / path.name
            compile_unit(unit, made)
            os.replace(made, path)
        stamp.write_text(digest)
        return True

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        compiled = list(threads.map(build, units))
    return [path for (_, path), done in zip(units, compiled, strict=True) if done]


def _digest(command: Sequence[str]) -> str:
    """Of all that an object depends on."""
    digest = hashlib.sha256(repr([metadata.version("ziglang"), *command]).encode())
    for source in sorted([*SOURCES.glob("*.[ch]*"), Path(__file__)]):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return digest.hexdigest()


def _zig(arguments: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="llmir-zig-") as cache:
        done = subprocess.run(
            [sys.executable, "-m", "ziglang", *arguments],
            cwd=SOURCES,
            env={**os.environ, "ZIG_LOCAL_CACHE_DIR": cache, "ZIG_GLOBAL_CACHE_DIR": cache},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        raise BuildError(f"zig {' '.join(arguments)}\n{done.stderr}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compile the GPU kernels.")
    parser.add_argument("kinds", nargs="*", choices=["cuda", "hip", []], default=[])
    parser.add_argument("--check", type=Path, metavar="PTXAS", help="assemble every PTX with it")
    options = parser.parse_args(arguments)
    builders = {"cuda": build_cuda, "hip": build_hip}
    try:
        for kind in options.kinds or builders:
            for path in builders[kind]():
                print(f"compiled {path.relative_to(ROOT)}")
            if kind == "hip":
                left = [unit.name for unit in UNITS if not unit.for_hip]
                print(f"hip: not compiled, for they need NVIDIA's matrix unit: {', '.join(left)}")
        if options.check:
            for unit in UNITS:
                path = OBJECTS / "cuda" / CUDA_ARCH / f"{unit.name}.ptx"
                for arch in PTXAS_ARCHES:
                    for kernel, used in resources(assemble(options.check, path, arch)).items():
                        print(f"{arch} {unit.name} {kernel}: {used}")
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
