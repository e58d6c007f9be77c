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

import llmir
from llmir.compiler.versions import PINNED

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


def test_the_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    # A copy: building leaves directories behind.  A machine that runs the tests may lack git.
    shutil.copytree(ROOT / "llmir", source / "llmir", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, source)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "-q", "-w", str(tmp_path)]
    command = [sys.executable, "-m", "pip", "wheel", *options, str(source)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"llmir-{llmir.__version__}-py3-none-any.whl"
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {p.relative_to(source).as_posix() for p in source.glob("llmir/**/*") if p.is_file()}
    assert {n for n in names if ".dist-info/" not in n} == sources
    assert "llmir/py.typed" in names
    info = f"llmir-{llmir.__version__}.dist-info"
    assert f"{info}/licenses/LICENSE" in names
    entry_points = zipfile.ZipFile(wheel).read(f"{info}/entry_points.txt").decode()
    assert "llmir = llmir.cli:main" in entry_points


def test_the_licence_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert PROJECT["license"] == "Apache-2.0"


def test_one_word_commands() -> None:
    """Every target that `make` promises is there, and only prints what it would do here."""
    text = (ROOT / "Makefile").read_text()
    targets = {"run", "test", "test-targets", "lint", "bench", "clean"}
    assert targets <= set(re.findall(r"^([a-z-]+):", text, re.MULTILINE))
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in targets:
        assert re.search(rf"^make {target} ", listed.stdout, re.MULTILINE)


def test_scripts_are_executable() -> None:
    for name in (".ci/run", "tools/setup.sh"):
        path = ROOT / name
        assert os.access(path, os.X_OK), f"{name} is not executable"
        assert "set -euo pipefail" in path.read_text()
