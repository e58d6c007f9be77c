"""The build of the C kernels: every level, what the objects hold, and when they are made again."""

from __future__ import annotations

import ctypes
import platform
import shutil
from pathlib import Path
from types import ModuleType

import pytest
from plugins.elf import read_elf
from plugins.kernels import kernels, levels_here, load_build

from llmir import cpu_levels
from llmir.cpu_levels import LEVELS, IsaLevel, object_flags, object_path
from llmir.errors import CompileError

ALL = pytest.mark.parametrize("level", LEVELS, ids=lambda x: x.name)
SOURCE = "int llmir_test(int);\nint llmir_test(int x) { return x + HEADER; }\n"


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    """The objects, of the sources as they are now."""
    load_build().build_objects()


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The build, of small sources in a directory of their own, into another."""
    build = load_build()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "llmir_cpu.c").write_text('#include "header.h"\n' + SOURCE)
    (tmp_path / "cpu" / "header.h").write_text("#define HEADER 1\n")
    monkeypatch.setattr(build, "SOURCES", tmp_path / "cpu")
    monkeypatch.setattr(build, "OBJECTS", tmp_path / "objects")
    return build


def test_the_build_and_llmir_name_the_same_levels() -> None:
    assert [(x.name, x.arch) for x in load_build().LEVELS] == [(x.name, x.arch) for x in LEVELS]
    assert load_build().OBJECTS == cpu_levels.OBJECTS / "cpu"


@ALL
def test_an_object_needs_nothing_and_keeps_nothing(level: IsaLevel) -> None:
    """IREE links it into a module with no library, and maps it read-only for all threads."""
    elf = read_elf(object_path(level))
    assert elf.arch == level.arch
    assert elf.undefined == set()
    writable = [s.name for s in elf.sections if s.is_writable and s.num_bytes]
    assert writable == []
    assert elf.functions


def test_every_level_has_the_same_kernels() -> None:
    functions = {level.name: read_elf(object_path(level)).functions for level in LEVELS}
    assert len(set(map(frozenset, functions.values()))) == 1, functions


def test_no_object_names_the_machine_that_made_it() -> None:
    root = str(Path(load_build().ROOT)).encode()
    for level in LEVELS:
        assert root not in object_path(level).read_bytes()


def test_kernels_can_be_called() -> None:
    """Every level that runs here loads, and has what its object has."""
    assert levels_here()
    for level in levels_here():
        library = kernels(level.name)
        for name in read_elf(object_path(level)).functions:
            assert isinstance(library[name], ctypes._CFuncPtr)


def test_objects_are_made_again_when_what_they_depend_on_changes(
    small: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made() -> list[str]:
        return [path.parent.name for path in small.build_objects()]

    names = [level.name for level in LEVELS]
    assert made() == names
    assert made() == []
    (small.SOURCES / "header.h").write_text("#define HEADER 2\n")
    assert made() == names
    monkeypatch.setattr(small, "FLAGS", [*small.FLAGS, "-DNOTHING"])
    assert made() == names
    (small.OBJECTS / names[0] / "llmir_cpu.o").unlink()
    assert made() == [names[0]]
    assert made() == []


def test_the_same_sources_give_the_same_bytes(
    small: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.build_objects()
    first = {p.parent.name: p.read_bytes() for p in small.OBJECTS.rglob("*.o")}
    moved = tmp_path / "elsewhere"
    shutil.copytree(small.SOURCES, moved)
    monkeypatch.setattr(small, "SOURCES", moved)
    monkeypatch.setattr(small, "OBJECTS", tmp_path / "again")
    small.build_objects()
    assert first == {p.parent.name: p.read_bytes() for p in small.OBJECTS.rglob("*.o")}


def test_hidden_functions_can_be_called_in_tests(small: ModuleType, tmp_path: Path) -> None:
    small.build_objects()
    level = small.level_of(levels_here()[0].name)
    assert level.arch == platform.machine()
    library = ctypes.CDLL(str(small.link_shared(level, tmp_path / "small.so")))
    assert library.llmir_test(41) == 42


def test_what_the_compiler_says_is_shown_and_nothing_stale_is_left(small: ModuleType) -> None:
    small.build_objects()
    (small.SOURCES / "header.h").write_text("#define HEADER unknown_name\n")
    with pytest.raises(small.BuildError, match="unknown_name"):
        small.build_objects()
    first = small.OBJECTS / LEVELS[0].name
    assert list(first.iterdir()) == []


def test_a_warning_is_an_error(small: ModuleType) -> None:
    (small.SOURCES / "header.h").write_text(
        "#define HEADER 1\nstatic int unused(void) {return 1;}\n"
    )
    with pytest.raises(small.BuildError, match="unused"):
        small.build_objects()


def test_an_object_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_levels, "OBJECTS", tmp_path)
    with pytest.raises(CompileError, match="no kernels for x86-64-v3: .* run `make plugins`"):
        object_flags(LEVELS[0])


@ALL
def test_flags_name_no_directory_of_this_machine(level: IsaLevel) -> None:
    (flag,) = object_flags(level)
    assert flag.partition("=")[2] == f"objects/cpu/{level.name}"
