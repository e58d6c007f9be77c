"""C kernels in a module: the level's object is the one that iree-compile links."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dialect_ext.lowered import run_with_tool
from plugins.kernels import levels_here, load_build

from llmir import cpu_levels
from llmir.compiler import iree_compile, options
from llmir.compiler.build import _cpu_features
from llmir.cpu_levels import LEVELS, IsaLevel, object_flags
from llmir.targets import TARGETS, resolve

# Which level a kernel was compiled for, as its code sees it.
KERNEL = """
void which_level(float *out);

void which_level(float *out) {
#if defined(__AMX_INT8__) && defined(__AMX_BF16__) && defined(__AVX512BF16__)
  *out = 3;
#elif defined(__AVX512BF16__) && defined(__AVX512VNNI__)
  *out = 2;
#elif defined(__AVX512VNNI__) && defined(__AVX512VL__)
  *out = 1;
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__) && !defined(__AVX512F__)
  *out = 0;
#elif defined(__ARM_FEATURE_MATMUL_INT8) && defined(__ARM_FEATURE_DOTPROD)
  *out = 5;
#elif defined(__ARM_NEON) && !defined(__ARM_FEATURE_DOTPROD)
  *out = 4;
#endif
}
"""
MODULE = """
stream.executable private @kernels attributes {hal.executable.objects = #hal.executable.objects<{
  #hal.executable.target<"llvm-cpu", "embedded-elf-x86_64">
    = [#hal.executable.object<{path = "llmir_cpu.o"}>],
  #hal.executable.target<"llvm-cpu", "embedded-elf-arm_64">
    = [#hal.executable.object<{path = "llmir_cpu.o"}>]
}>} {
  stream.executable.export public @which workgroups() -> (index, index, index) {
    %c1 = arith.constant 1 : index
    stream.return %c1, %c1, %c1 : index, index, index
  }
  builtin.module {
    func.func private @which_level(memref<f32>)
      attributes {hal.import.static, llvm.bareptr = true}
    func.func @which(%out: !stream.binding) {
      %c0 = arith.constant 0 : index
      %y = stream.binding.subspan %out[%c0] : !stream.binding -> memref<1xf32>
      %base, %offset, %size, %stride = memref.extract_strided_metadata %y
        : memref<1xf32> -> memref<f32>, index, index, index
      func.call @which_level(%base) : (memref<f32>) -> ()
      return
    }
  }
}
func.func @main(%x: tensor<1xf32>) -> tensor<1xf32> {
  %y = flow.dispatch @kernels::@which(%x) : (tensor<1xf32>) -> %x
  return %y : tensor<1xf32>
}
"""
EMPTY = """
func.func @main(%x: tensor<4xf32>) -> tensor<4xf32> {
  %y = arith.addf %x, %x : tensor<4xf32>
  return %y : tensor<4xf32>
}
"""
ALL = pytest.mark.parametrize("level", LEVELS, ids=lambda x: x.name)


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """objects/ with KERNEL for every level."""
    build, directory = load_build(), tmp_path_factory.mktemp("kernels")
    (directory / "llmir_cpu.c").write_text(KERNEL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "SOURCES", directory)
        patch.setattr(build, "OBJECTS", directory / "objects" / "cpu")
        build.build_objects()
    return directory / "objects"


@ALL
def test_a_module_has_the_kernels_of_its_level(
    level: IsaLevel, objects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It links for every level; on those that run here, the kernel says which it is."""
    monkeypatch.setattr(cpu_levels, "OBJECTS", objects)
    monkeypatch.setattr(iree_compile, "OBJECTS", objects)
    flags = [*resolve(f"cpu:{level.name}").flags, *object_flags(level)]
    stream = iree_compile.to_stream(MODULE, flags)
    iree_compile.to_module(stream, flags, tmp_path / "module.vmfb")
    assert str(objects).encode() not in (tmp_path / "module.vmfb").read_bytes()
    if level in levels_here():
        inputs = [(np.full(1, -1, np.float32), "f32")]
        assert run_with_tool(tmp_path / "module.vmfb", "local-task", inputs) == LEVELS.index(level)


@pytest.mark.parametrize("name", [t.name for t in TARGETS.values() if t.is_cpu])
def test_a_module_names_amx_only_if_kernels_may_use_it(name: str) -> None:
    target = resolve(name)
    generated = ["avx512f", "amx-tile", "amx-int8", "amx-fp16"]  # as for a CPU that has it
    assert _cpu_features(generated, target.flags, target) == ("avx512f",)
    level = target.isa_level
    if level is None:
        return
    found = _cpu_features(generated, [*target.flags, *object_flags(level)], target)
    assert found == tuple(dict.fromkeys(["avx512f", *level.features]))


def test_features_that_targets_are_said_to_need_are_those_of_their_code() -> None:
    """`llmir targets` says what a target needs without compiling for it."""
    for target in TARGETS.values():
        if target.is_cpu and target.named_level is not None:
            code = iree_compile.cpu_code(iree_compile.to_stream(EMPTY, target.flags))
            assert code.arch == target.named_level.arch
            if code.arch == "x86_64":
                assert set(target.cpu_features) <= set(code.features), target.name


def test_the_cache_key_covers_the_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "__file__", str(tmp_path / "compiler" / "options.py"))
    monkeypatch.setattr(options, "OBJECTS", tmp_path / "objects")
    digest = options._code_digest.__wrapped__
    kernels = tmp_path / "objects" / "cpu" / "kernels.o"
    kernels.parent.mkdir(parents=True)
    digests = [digest()]
    for content in (b"one", b"two"):
        kernels.write_bytes(content)
        digests.append(digest())
    assert len(set(digests)) == 3


def test_the_cache_key_covers_the_sources_that_compile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(options, "__file__", str(tmp_path / "compiler" / "options.py"))
    monkeypatch.setattr(options, "OBJECTS", tmp_path / "objects")
    digest = options._code_digest.__wrapped__
    before = digest()
    for name, changes in (
        ("server/app.py", False),
        ("engine/llm.py", False),
        ("passes/x.py", True),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text("pass")
        assert (digest() != before) is changes, name
