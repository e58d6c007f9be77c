"""Compiles an llm op through one of its lowerings and runs it on arrays."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import iree.runtime as rt
import numpy as np
from iree.runtime.function import FunctionInvoker

from llmir.compiler.iree_compile import to_module, to_stream
from llmir.dialect_ext.base import AttrValue, Lowering, Op
from llmir.dialect_ext.types import TensorType
from llmir.targets import resolve

Array = np.ndarray[Any, Any]
NUMPY_DTYPES = {"f32": np.float32, "f16": np.float16, "i32": np.int32, "i8": np.int8}


def lowering(op: Op, variant: str) -> Lowering:
    """A portable lowering; tests/conformance has those of the C kernels."""
    return next(x for x in op.lowerings if (x.provider, x.variant) == ("portable", variant))


def module(
    op: Op,
    types: Sequence[TensorType | None],
    attrs: Mapping[str, AttrValue],
    variant: str,
    through: Lowering | None = None,
) -> str:
    """MLIR whose `main` is one call of the op, through a portable lowering or another."""
    call = op.verify(types, attrs)
    names = [name for name, _ in call.present]
    args = ", ".join(f"%{n}: {t}" for n, t in call.present)
    operands = ", ".join(f"%{n}" for n in names)
    results = ", ".join(map(str, call.results))
    made = ", ".join(f"%y{i}" for i in range(len(call.results)))
    return f"""
{(through or lowering(op, variant)).emit(call, "op")}
func.func @main({args}) -> ({results}) {{
  {made} = func.call @op({operands}) : ({", ".join(str(t) for _, t in call.present)}) -> ({results})
  return {made} : {results}
}}
"""


def compile_text(text: str, target: str, path: Path) -> Path:
    flags = resolve(target).flags
    to_module(to_stream(text, flags), flags, path)
    return path


@functools.cache
def device() -> Any:
    return rt.get_device("local-task")


def to_bf16(values: Array) -> Array:
    """The bits of float32 values rounded to bf16, to nearest and even, as uint16."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits: Array) -> Array:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def put(values: Array, dtype: str) -> rt.DeviceArray:
    """Values on the device; bf16 ones are given as float32."""
    if dtype != "bf16":
        return rt.asdevicearray(device(), np.ascontiguousarray(values, NUMPY_DTYPES[dtype]))
    view = device().allocator.allocate_buffer_copy(
        memory_type=rt.MemoryType.DEVICE_LOCAL,
        allowed_usage=rt.BufferUsage.DEFAULT | rt.BufferUsage.MAPPING,
        device=device(),
        buffer=to_bf16(values),
        element_type=rt.HalElementType.BFLOAT_16,
    )
    return rt.DeviceArray(device(), view)


def load(path: Path) -> Callable[..., rt.DeviceArray]:
    """The `main` of a compiled module, called with arrays on the device."""
    return functions_of(path, ["main"])["main"]


def functions_of(path: Path, names: Iterable[str]) -> dict[str, Callable[..., rt.DeviceArray]]:
    instance = rt.Config(device=device()).vm_instance
    vm_module = rt.VmModule.copy_buffer(instance, path.read_bytes())
    context = rt.VmContext(instance, [rt.create_hal_module(instance, device()), vm_module])
    return {n: FunctionInvoker(context, device(), vm_module.lookup_function(n)) for n in names}


@dataclass(frozen=True)
class Together:
    """The `main`s of many modules, compiled as one: the compiler takes half a second to compile
    anything at all.

    path:  the compiled module
    names: a case → the name of its `main` there
    """

    path: Path
    names: dict[Any, str]

    @functools.cached_property
    def mains(self) -> dict[Any, Callable[..., Any]]:
        """A case → its `main` on the CPU, called with arrays on the device."""
        found = functions_of(self.path, self.names.values())
        return {case: found[name] for case, name in self.names.items()}


def compile_together(texts: Mapping[Any, str], path: Path, target: str = "cpu") -> Together:
    """Each case's MLIR in one module at `path`; its symbols get the case's number."""
    renamed = [re.sub(r"@(\w+)", rf"@\g<1>_{i}", text) for i, text in enumerate(texts.values())]
    compile_text("\n".join(renamed), target, path)
    return Together(path, {case: f"main_{i}" for i, case in enumerate(texts)})


def run_with_tool(
    path: Path, device_uri: str, inputs: Sequence[tuple[Array, str]], function: str = "main"
) -> Array:
    """Run a function with iree-run-module on a device; inputs are (values, dtype)."""
    return all_results_with_tool(path, device_uri, inputs, 1, function)[0]


def all_results_with_tool(
    path: Path,
    device_uri: str,
    inputs: Sequence[tuple[Array, str]],
    num_results: int,
    function: str = "main",
) -> list[Array]:
    tool = Path(sys.executable).with_name("iree-run-module")
    args = []
    for i, (values, dtype) in enumerate(inputs):
        raw = path.with_name(f"in{i}.bin")
        (to_bf16(values) if dtype == "bf16" else values.astype(NUMPY_DTYPES[dtype])).tofile(raw)
        args.append(f"--input={'x'.join(map(str, values.shape))}x{dtype}=@{raw}")
    outs = [path.with_name(f"out{i}.npy") for i in range(num_results)]
    command = [tool, f"--device={device_uri}", f"--module={path}", f"--function={function}", *args]
    done = subprocess.run(
        [*command, *(f"--output=@{out}" for out in outs)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [np.load(out) for out in outs]
