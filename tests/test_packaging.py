"""The project as it is installed: pins, the wheel, and the commands a newcomer types."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import llmir
from llmir.compiler.versions import PINNED
from llmir.cpu_levels import LEVELS

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def pins(requirements: list[str]) -> dict[str, str]:
    return dict(r.split("==") for r in requirements if "==" in r)


def test_the_pins_are_those_that_the_compiler_checks() -> None:
    assert pins(EXTRAS["compile"]) == PINNED
    assert pins(PROJECT["dependencies"]) == {"iree-base-runtime": PINNED["iree-base-runtime"]}


def test_the_version_is_one() -> None:
    assert PROJECT["version"] == llmir.__version__
    assert f"## {llmir.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_serving_needs_no_compiler() -> None:
    names = {re.split(r"[^\w-]", r)[0] for r in PROJECT["dependencies"]}
    assert not names & {"torch", "iree-turbine", "iree-base-compiler", "transformers"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of what packages are made from, nothing built, with two small kernels.

    A copy: building leaves directories behind.  A machine that runs the tests may lack git.
    """
    source = tmp_path / "source"
    unwanted = shutil.ignore_patterns("__pycache__", "objects")
    shutil.copytree(ROOT / "llmir", source / "llmir", ignore=unwanted)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, source)
    (source / "plugins" / "cpu").mkdir(parents=True)
    (source / "plugins" / "vulkan").mkdir()
    for name in ("build.py", "build_vulkan.py"):
        shutil.copy(ROOT / "plugins" / name, source / "plugins")
    kernel = "int llmir_test(void);\nint llmir_test(void) { return 1; }\n"
    (source / "plugins" / "cpu" / "llmir_cpu.c").write_text(kernel)
    shader = "#version 450\nvoid main() {}\n"
    (source / "plugins" / "vulkan" / "small.comp").write_text(shader)
    (source / "plugins" / "cuda").mkdir()
    for name in ("rows.cu", "device.h", "group_sum.h", "numbers.h"):
        shutil.copy(ROOT / "plugins" / "cuda" / name, source / "plugins" / "cuda")
    program = (ROOT / "plugins" / "build_gpu.py").read_text()
    only = 'UNITS = (Unit("rows", "rows.cu", for_hip=True),)\n_OTHERS = ('
    assert program.count("\nUNITS = (") == 1
    (source / "plugins" / "build_gpu.py").write_text(program.replace("UNITS = (", only, 1))
    return source


def build(source: Path, kind: str) -> Path:
    """What the build back end makes of `source`: kind "wheel", "editable" or "sdist"."""
    code = (
        "import sys, setuptools.build_meta as back_end\n"
        f"print(back_end.build_{kind}(sys.argv[1]), file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, str(source.parent)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return source.parent / done.stderr.splitlines()[-1]


OBJECTS = {
    *(f"llmir/objects/cpu/{level.name}/llmir_cpu.o" for level in LEVELS),
    "llmir/objects/vulkan/small.spv",
    "llmir/objects/cuda/sm_80/rows.ptx",
    "llmir/objects/hip/gfx942/rows.hsaco",
    "llmir/objects/hip/gfx1100/rows.hsaco",
}


def test_the_wheel_holds_the_package_and_nothing_else(source: Path) -> None:
    before = {p.relative_to(source).as_posix() for p in source.glob("llmir/**/*") if p.is_file()}
    wheel = build(source, "wheel")
    assert wheel.name == f"llmir-{llmir.__version__}-py3-none-any.whl"
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {n for n in names if ".dist-info/" not in n} == before | OBJECTS
    assert "llmir/py.typed" in names
    info = f"llmir-{llmir.__version__}.dist-info"
    assert f"{info}/licenses/LICENSE" in names
    entry_points = zipfile.ZipFile(wheel).read(f"{info}/entry_points.txt").decode()
    assert "llmir = llmir.cli:main" in entry_points


def test_an_editable_install_builds_the_kernels(source: Path) -> None:
    build(source, "editable")
    assert {n for n in OBJECTS if (source / n).is_file()} == OBJECTS


def test_an_install_without_kernels_fails(source: Path) -> None:
    (source / "plugins" / "cpu" / "llmir_cpu.c").write_text("no C at all\n")
    with pytest.raises(AssertionError, match="unknown type name 'no'"):
        build(source, "editable")
    with pytest.raises(AssertionError, match="unknown type name 'no'"):
        build(source, "wheel")


def test_without_the_compiler_of_vulkan_kernels_a_wheel_is_made_that_lacks_them(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    names = set(zipfile.ZipFile(build(source, "wheel")).namelist())
    assert {n for n in names if "/objects/" in n} == {n for n in OBJECTS if "/vulkan/" not in n}


def test_a_wheel_can_be_made_of_the_source_distribution(source: Path) -> None:
    shutil.copy(ROOT / "plugins" / "cpu" / "simd.h", source / "plugins" / "cpu")
    (source / "llmir" / "objects" / "cpu").mkdir(parents=True)
    (source / "llmir" / "objects" / "cpu" / "stale.o").write_bytes(b"")
    shutil.unpack_archive(build(source, "sdist"), source.parent)
    unpacked = source.parent / f"llmir-{llmir.__version__}"
    assert (unpacked / "plugins" / "cpu" / "simd.h").is_file()
    assert (unpacked / "plugins" / "vulkan" / "small.comp").is_file()
    assert not (unpacked / "llmir" / "objects").exists()
    assert set(zipfile.ZipFile(build(unpacked, "wheel")).namelist()) >= OBJECTS


def test_one_version_of_the_kernels_compiler() -> None:
    (compiler,) = EXTRAS["plugins"]
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert compiler in requires
    assert compiler.startswith("ziglang==")


def test_the_licence_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert PROJECT["license"] == "Apache-2.0"


def test_one_word_commands() -> None:
    """Every target that `make` promises is there, and only prints what it would do here."""
    text = (ROOT / "Makefile").read_text()
    targets = {"run", "plugins", "test", "test-targets", "test-serving", "lint", "bench", "clean"}
    assert targets <= set(re.findall(r"^([a-z-]+):", text, re.MULTILINE))
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in targets:
        assert re.search(rf"^make {target} ", listed.stdout, re.MULTILINE)


def test_scripts_are_executable() -> None:
    for name in (".ci/run", "tools/setup.sh"):
        path = ROOT / name
        assert os.access(path, os.X_OK), f"{name} is not executable"
        assert "set -euo pipefail" in path.read_text()
