"""The build of the Vulkan kernels: what is made, when it is made again, what is said without."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from llmir.cpu_levels import OBJECTS
from llmir.dialect_ext.spirv import LOCAL_SIZE_X, specialise
from llmir.dialect_ext.spirv_kernels import SHADERS, needs_shader
from llmir.errors import CompileError
from llmir.targets import resolve
from plugins.vulkan import load_build_vulkan

SHADER = """#version 450
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint FACTOR = 1;
layout(constant_id = 2) const float SHARE = 1.0;
layout(constant_id = 3) const int SHIFT = 1;
layout(set = 0, binding = 0) buffer Y { float y[]; };
void main() { y[gl_GlobalInvocationID.x] = float(int(FACTOR) + SHIFT) * SHARE; }
"""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The build, of one small shader in a directory of its own, into another."""
    build = load_build_vulkan()
    (tmp_path / "vulkan").mkdir()
    (tmp_path / "vulkan" / "small.comp").write_text(SHADER)
    monkeypatch.setattr(build, "SOURCES", tmp_path / "vulkan")
    monkeypatch.setattr(build, "OBJECTS", tmp_path / "objects")
    return build


def test_the_compiler_is_here_and_every_kernel_is_built() -> None:
    """`make test` installs it; without, every target would quietly get portable code."""
    build = load_build_vulkan()
    assert build.missing_tool() is None
    assert shutil.which(build.VALIDATOR)
    build.build_modules()
    assert build.OBJECTS == OBJECTS / "vulkan"
    assert {p.stem for p in build.SOURCES.glob("*.comp")} == set(SHADERS)
    assert needs_shader(resolve("vulkan"), *SHADERS) is None


def test_modules_are_made_again_when_what_they_depend_on_changes(
    small: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = small.OBJECTS / "small.spv"
    assert small.build_modules() == [module]
    assert small.build_modules() == []
    first = module.read_bytes()
    (small.SOURCES / "other.glsl").write_text("// included by nobody\n")
    assert small.build_modules() == [module]
    assert module.read_bytes() == first
    monkeypatch.setattr(small, "FLAGS", [*small.FLAGS, "-DNOTHING"])
    assert small.build_modules() == [module]


def test_what_the_compiler_says_is_shown_and_nothing_stale_is_left(small: ModuleType) -> None:
    small.build_modules()
    (small.SOURCES / "small.comp").write_text(SHADER.replace("SHARE;", "unknown_name;"))
    with pytest.raises(small.BuildError, match="unknown_name"):
        small.build_modules()
    assert not (small.OBJECTS / "small.spv").exists()


def test_a_machine_without_the_compiler_is_told_its_name(
    small: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert "glslangValidator: apt-get install glslang-tools" in small.missing_tool()
    with pytest.raises(small.BuildError, match="glslangValidator"):
        small.build_modules()
    assert small.main() == 1
    assert "glslang-tools" in capsys.readouterr().err


def test_specialization_constants_get_values(small: ModuleType, tmp_path: Path) -> None:
    (module,) = small.build_modules()
    made = specialise(
        module.read_bytes(), {LOCAL_SIZE_X: 48, "FACTOR": 7, "SHARE": 0.25, "SHIFT": -3}
    )
    words = np.frombuffer(made, "<u4")
    for value in (struct.pack("<I", 48), struct.pack("<I", 7), struct.pack("<f", 0.25)):
        assert struct.unpack("<I", value)[0] in words
    assert 2**32 - 3 in words
    path = tmp_path / "made.spv"
    path.write_bytes(made)
    subprocess.run(["spirv-val", *small.ENVIRONMENT, path], check=True)
    with pytest.raises(CompileError, match="no specialization constant 'SIZE'; it has: .*FACTOR"):
        specialise(module.read_bytes(), {"SIZE": 1})
    with pytest.raises(CompileError, match="not a SPIR-V module"):
        specialise(b"\x7fELF" + bytes(32), {})


def test_a_module_that_is_not_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmir.dialect_ext.spirv_kernels.OBJECTS", Path("/nowhere"))
    assert needs_shader(resolve("vulkan"), "linear") == (
        "llmir was built without linear.spv; run `make plugins`"
    )
    assert needs_shader(resolve("cpu"), "linear") == "SPIR-V kernels are for Vulkan"
