"""The build of the GPU kernels: what PTX and code objects hold.  Compiled, not run: no GPU here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from plugins.elf import read_elf
from plugins.gpu import ROOT, load_build_gpu

from llmir.compiler.iree_compile import to_module, to_stream
from llmir.dialect_ext import gpu_kernels
from llmir.dialect_ext.gpu_kernels import CUDA, GPU_PROVIDERS, HIP, needs_gpu
from llmir.dialect_ext.gpu_matmul import unit_of
from llmir.dialect_ext.registry import get_op, lowerings_of, op_names
from llmir.dialect_ext.types import TensorType
from llmir.errors import CompileError
from llmir.formats import packed
from llmir.passes.ir import parse_module, walk
from llmir.targets import resolve

BUILD = load_build_gpu()
PTXAS = ROOT / ".cache" / "ptxas" / "bin" / "ptxas"
_ENTRY = re.compile(r"\.visible \.entry (\w+)\(([^)]*)\)\s*\.maxntid (\d+), 1, 1", re.DOTALL)
INDEX = TensorType((None,), "i32")


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    """The objects, of the sources as they are now."""
    BUILD.build_cuda()
    BUILD.build_hip()


def ptx_of(unit: str) -> str:
    path: Path = BUILD.OBJECTS / "cuda" / BUILD.CUDA_ARCH / f"{unit}.ptx"
    return path.read_text()


def entries(unit: str) -> dict[str, tuple[list[str], int]]:
    """kernel → the types of its parameters, and its threads."""
    found = {}
    for name, parameters, threads in _ENTRY.findall(ptx_of(unit)):
        found[name] = re.findall(r"\.param \.(\w+)", parameters), int(threads)
    return found


@pytest.mark.parametrize("unit", BUILD.UNITS, ids=lambda u: u.name)
def test_ptx_is_for_sm_80_and_old_drivers(unit: Any) -> None:
    text = ptx_of(unit.name)
    assert re.findall(r"^\.version (\S+)", text, re.MULTILINE) == [BUILD.PTX_VERSION]
    assert re.findall(r"^\.target (\S+)", text, re.MULTILINE) == ["sm_80"]
    assert {name: threads for name, (_, threads) in entries(unit.name).items()} == (
        BUILD.kernels_of(unit)
    )
    assert ".extern" not in text, "a kernel calls what nobody defines"
    assert str(ROOT) not in text


def test_the_matrix_unit_and_asynchronous_copies_are_used() -> None:
    product = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
    assert ptx_of("matmul_q4_0_1").count(product) > 64
    assert product in ptx_of("attention_128")
    assert "cp.async.cg.shared.global" in ptx_of("matmul_bf16_1")


@pytest.mark.parametrize("arch", BUILD.HIP_ARCHES)
def test_code_objects_hold_their_kernels(arch: str) -> None:
    for unit in BUILD.UNITS:
        path = BUILD.OBJECTS / "hip" / arch / f"{unit.name}.hsaco"
        assert path.exists() == unit.for_hip
        if unit.for_hip:
            elf = read_elf(path)
            assert elf.arch == "amdgpu"
            kernels = set(BUILD.kernels_of(unit))
            assert kernels <= elf.functions
            assert {f"{name}.kd" for name in kernels} <= elf.functions  # kernel descriptors
            assert not elf.undefined
            assert f"amdgcn-amd-amdhsa--{arch}".encode() in path.read_bytes()


def calls() -> Iterator[tuple[str, list[TensorType | None], dict[str, Any]]]:
    """A call of every op that has GPU kernels, of every unit."""
    for name in ("q4_0", "q4_1", "q8_0", "int8", "int4_g64", "int4_g32_zp", "bf16"):
        assert unit_of(name) is not None
        x = TensorType((None, 128), "f32")
        weight = TensorType((packed.FORMATS[name].num_bytes(32, 128),), "i8")
        twice = TensorType((packed.FORMATS[name].num_bytes(64, 128),), "i8")
        for activations in ("bf16", "f32"):
            attrs = {"format": name, "activations": activations, "rows": 32, "eps": 1e-5}
            yield "packed_matmul", [x, weight, None, None, None], attrs
            yield "packed_matmul", [x, twice, None, None, None], {**attrs, "gated": "silu"}
            yield "packed_argmax", [x, weight, None, None], attrs
        embedding = {"format": name, "rows": 32, "cols": 128}
        yield "packed_embedding", [INDEX, weight], embedding
    rows = TensorType((None, 64), "f32")
    yield "rms_norm", [rows, TensorType((64,), "f32")], {"eps": 1e-5}
    yield "silu_mul", [rows, rows], {}
    yield "gelu_mul", [rows, rows], {}
    for columns in (64, 49152):
        yield "topk", [TensorType((None, columns), "f32")], {"k": 64}
    for dim in (64, 128):
        heads = TensorType((None, 2, dim), "f32")
        kv = TensorType((None, 2, 2, 16, dim), "bf16")
        qkv, table = TensorType((None, 8 * dim), "f32"), TensorType((64, dim), "f32")
        yield "append_kv", [kv, heads, heads, INDEX], {}
        yield "rope_append", [qkv, INDEX, table, INDEX, kv, None, None], {}
        q = TensorType((None, 4, dim), "f32")
        pages = TensorType((None, None), "i32")
        yield (
            "paged_attention",
            [q, kv, pages, INDEX, INDEX, INDEX, INDEX, None],
            {"scale": 0.1, "window": 0},
        )


def test_lowerings_call_kernels_with_their_parameters() -> None:
    """Pointers first, then 32-bit numbers: as many as the entry has; and every kernel is called."""
    called = set()
    for op_name, types, attrs in calls():
        call = get_op(op_name).verify(types, attrs)
        lowering = next(x for x in lowerings_of(op_name) if x.provider == CUDA)
        assert lowering.supports(call, resolve("cuda")) is None
        for op in walk(parse_module(lowering.emit(call, "op")).operation):
            if op.name != "hal.executable.export":
                continue
            unit = str(op.parent.attributes["sym_name"]).strip('"').removeprefix("op_")
            kernel = str(op.attributes["sym_name"]).strip('"')
            parameters, threads = entries(unit)[kernel]
            layout = str(op.attributes["layout"])
            bindings = layout.count("#hal.pipeline.binding<")
            constants = int(re.findall(r"constants = (\d+)", layout)[0])
            assert parameters == ["u64"] * bindings + ["u32"] * constants, f"{unit}.{kernel}"
            assert str(threads) == re.findall(r"\d+", str(op.attributes["workgroup_size"]))[0]
            called.add(f"{unit}.{kernel}")
    every = {f"{unit.name}.{kernel}" for unit in BUILD.UNITS for kernel in BUILD.kernels_of(unit)}
    assert called == every


def test_every_op_with_gpu_kernels_is_called_here() -> None:
    # A lowering that pack-weights replaces calls no kernel.
    replaced = {"linear", "quantized_matmul", "embedding", "quantized_embedding"}
    having = {
        name for name in op_names() if any(x.provider in GPU_PROVIDERS for x in lowerings_of(name))
    }
    assert having - replaced == {op_name for op_name, _, _ in calls()}


@pytest.mark.parametrize(
    ("target", "provider", "marks"),
    [("cuda:sm_80", CUDA, b".entry llmir_rms_norm"), ("rocm:gfx942", HIP, b"llmir_rms_norm.kd")],
)
def test_a_module_holds_the_kernels(
    target: str, provider: str, marks: bytes, tmp_path: Path
) -> None:
    types = [TensorType((None, 64), "f32"), TensorType((64,), "f32")]
    call = get_op("rms_norm").verify(types, {"eps": 1e-5})
    lowering = next(x for x in lowerings_of("rms_norm") if x.provider == provider)
    flags = (*resolve(target).flags, *lowering.flags(resolve(target)))
    text = f"""module @m {{
{lowering.emit(call, "op")}
func.func @main(%x: {types[0]}, %w: {types[1]}) -> {types[0]} {{
  %y = func.call @op(%x, %w) : ({types[0]}, {types[1]}) -> {types[0]}
  return %y : {types[0]}
}}
}}"""
    path = tmp_path / "op.vmfb"
    to_module(to_stream(text, flags), flags, path)
    assert marks in path.read_bytes()


def test_what_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_kernels, "DIRECTORY", tmp_path)
    with pytest.raises(CompileError, match="not built: run `make plugins-cuda`"):
        gpu_kernels.flags(CUDA, resolve("cuda:sm_80"))
    call = get_op("rms_norm").verify(
        [TensorType((None, 64), "f32"), TensorType((64,), "f32")], {"eps": 1e-5}
    )
    reasons = {
        x.provider: x.supports(call, resolve("rocm:gfx90a")) for x in lowerings_of("rms_norm")
    }
    assert reasons[HIP] == "kernels are compiled for gfx942 and gfx1100, not gfx90a"
    assert reasons[CUDA] == "PTX is for NVIDIA's GPUs"


def test_gpus_older_than_the_ptx_get_portable_code() -> None:
    refused = needs_gpu(CUDA, resolve("cuda:sm_75"))
    assert refused == "the PTX is for sm_80 and newer, not sm_75"
    assert needs_gpu(CUDA, resolve("cuda:sm_120")) is None


@pytest.mark.targets
@pytest.mark.parametrize("arch", BUILD.PTXAS_ARCHES)
def test_ptxas_takes_every_unit(arch: str) -> None:
    """NVIDIA's assembler, as a driver would: all registers at hand, and next to nothing spilled."""
    assert PTXAS.exists(), "tools/setup.sh ptxas"
    for unit in BUILD.UNITS:
        path = BUILD.OBJECTS / "cuda" / BUILD.CUDA_ARCH / f"{unit.name}.ptx"
        used = BUILD.resources(BUILD.assemble(PTXAS, path, arch))
        assert set(used) == set(BUILD.kernels_of(unit))
        for kernel, text in used.items():
            registers, spills, shared = map(int, re.findall(r"\d+", text))
            assert registers * BUILD.kernels_of(unit)[kernel] <= 65536, (
                f"{unit.name}.{kernel}: {text}"
            )
            assert spills <= 256, f"{unit.name}.{kernel}: {text}"
            assert shared <= 48 << 10, f"{unit.name}.{kernel}: {text}"
