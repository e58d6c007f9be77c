"""Dispatches of the Vulkan kernels in plugins/vulkan: executables with their SPIR-V embedded.

    kernel = SpirvKernel(
        shader="quantized_matmul",                    # objects/vulkan/quantized_matmul.spv
        constants={"N": 576, "local_size_x": 64},     # its specialization constants
        reads=("x", "quants", "scales"), writes=("y",),
        push=("T",),                                  # its push constants, in order
        grid=("row_blocks", "token_blocks"),
    )
    spirv_lowering(lambda call: SpirvPlan(kernels=(kernel,), …), supports)

Bindings are the reads, then the writes, in set 0.  The module is in the IR as bytes, so that
iree-compile needs no search path, and a kernel whose sizes are static is one of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from llmir.cpu_levels import OBJECTS
from llmir.dialect_ext.base import Call, Lowering
from llmir.dialect_ext.spirv import specialise
from llmir.dialect_ext.types import TensorType
from llmir.targets import Target

PROVIDER = "vulkan_spirv"
SHADERS = ("linear", "paged_attention", "paged_attention_combine", "quantized_matmul", "topk")
_TARGET = '#hal.executable.target<"vulkan-spirv", "vulkan-spirv-fb">'
_ENTRY = "main"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpirvKernel:
    """The dispatch of one shader.

    shader:     its file's name, without its end
    constants:  specialization constants by their names
    reads:      the tensors that it reads; one may stand twice
    writes:     those that it writes, whose contents nobody has written before
    tied:       the one of `reads` that it writes in place; "" if none
    push:       names of index values, its push constants
    grid:       workgroups in x, y and z: names of index values, or numbers
    """

    shader: str
    constants: Mapping[str, int | float]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    push: tuple[str, ...]
    grid: tuple[str, ...]
    tied: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpirvPlan:
    """The kernels that an op is lowered to, one after the other.

    tensors:  the op's operands by their names, its results and temporary ones, as kernels see them
    dims:     index values for each dynamic dim of a tensor that has any
    sizes:    index values that are a dim of an operand: (operand, dim)
    shapes:   MLIR that computes other index values from sizes
    results:  the tensors that are the op's results
    """

    tensors: Mapping[str, TensorType]
    sizes: Mapping[str, tuple[str, int]]
    kernels: tuple[SpirvKernel, ...]
    results: tuple[str, ...]
    dims: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    shapes: str = ""

    def typed(self, name: str) -> str:
        """A tensor's type and dims, as a dispatch names them."""
        return f"{self.tensors[name]}{self.dims_of(name)}"

    def dims_of(self, name: str) -> str:
        dims = self.dims.get(name, ())
        return f"{{{', '.join(f'%{d}' for d in dims)}}}" if dims else ""


def needs_shader(target: Target, *shaders: str) -> str | None:
    """Why a target cannot have these kernels, None if it can."""
    if target.kind != "vulkan":
        return "SPIR-V kernels are for Vulkan"
    for shader in shaders:
        if not (OBJECTS / "vulkan" / f"{shader}.spv").is_file():
            return f"llmir was built without {shader}.spv; run `make plugins`"
    return None


def spirv_lowering(
    plan: Callable[[Call], SpirvPlan], supports: Callable[[Call, Target], str | None]
) -> Lowering:
    """The Vulkan kernels' lowering of an op.  supports: as of Lowering."""
    return Lowering(
        provider=PROVIDER,
        supports=supports,
        emit=lambda call, symbol: emit(call, symbol, plan(call)),
        kinds=("vulkan",),
    )


def emit(call: Call, symbol: str, plan: SpirvPlan) -> str:
    """Module-level MLIR: an executable for each kernel, and the function that dispatches them."""
    lines: list[str] = []
    values: dict[str, str] = {}  # tensor → its SSA value, now
    for name, found in call.present:
        wanted = plan.tensors.get(name, found)
        values[name] = f"%{name}"
        if str(wanted) != str(found):
            lines.append(f"  %{name}_any = tensor.cast %{name} : {found} to {wanted}")
            values[name] = f"%{name}_any"
    for name, (operand, dim) in plan.sizes.items():
        lines.append(f"  %_at_{name} = arith.constant {dim} : index")
        lines.append(
            f"  %{name} = tensor.dim {values[operand]}, %_at_{name} : {plan.tensors[operand]}"
        )
    lines.append(plan.shapes)
    executables = []
    for i, kernel in enumerate(plan.kernels):
        executables.append(_executable(f"{symbol}_{i}", kernel))
        lines += _dispatch(f"{symbol}_{i}", i, plan, kernel, values)
    returned = []
    for i, (name, result) in enumerate(zip(plan.results, call.results, strict=True)):
        returned.append(f"%_result_{i}")
        lines.append(
            f"  %_result_{i} = tensor.cast {values[name]} : {plan.tensors[name]} to {result}"
        )
    body = "\n".join(lines)
    return f"""{"".join(executables)}
{call.signature(symbol)} {{
{body}
  return {", ".join(returned)} : {", ".join(map(str, call.results))}
}}
"""


@functools.cache
def _module(shader: str) -> bytes:
    return (OBJECTS / "vulkan" / f"{shader}.spv").read_bytes()


def _executable(name: str, kernel: SpirvKernel) -> str:
    code = specialise(_module(kernel.shader), kernel.constants)
    bindings = [
        "#hal.pipeline.binding<storage_buffer>"
        if t == kernel.tied
        else "#hal.pipeline.binding<storage_buffer, ReadOnly>"
        for t in kernel.reads
    ] + ["#hal.pipeline.binding<storage_buffer>" for _ in kernel.writes]
    counts = ", ".join(f"%{d}: index" for d in "xyz")
    # IREE 3.13 takes `objects` in the generic form alone.
    return f"""
"hal.executable.source"() <{{
    sym_name = "{name}_exe", sym_visibility = "private",
    objects = #hal.executable.objects<{{{_TARGET} = [#hal.executable.object<{{
        path = "{kernel.shader}.spv",
        data = dense<"0x{code.hex().upper()}"> : vector<{len(code)}xi8>}}>]}}>
}}> ({{
  hal.executable.export public @{_ENTRY} ordinal(0)
      layout(#hal.pipeline.layout<constants = {len(kernel.push)}, bindings = [
          {", ".join(bindings)}]>)
      count(%device: !hal.device, {counts}) -> (index, index, index) {{
    hal.return %x, %y, %z : index, index, index
  }}
  "hal.executable.source_end"() : () -> ()
}}) : () -> ()
"""


def _dispatch(
    name: str, i: int, plan: SpirvPlan, kernel: SpirvKernel, values: dict[str, str]
) -> list[str]:
    """The dispatch of one kernel; `values` gets what it writes."""
    lines, grid = [], []
    for d, count in enumerate((*kernel.grid, "1", "1")[:3]):
        if count.isdigit():
            lines.append(f"  %_grid_{i}_{d} = arith.constant {count} : index")
        grid.append(f"%_grid_{i}_{d}" if count.isdigit() else f"%{count}")
    for size in kernel.push:
        lines.append(f"  %_push_{i}_{size} = arith.index_cast %{size} : index to i32")
    given = [*(f"%_push_{i}_{s}" for s in kernel.push), *(values[t] for t in kernel.reads)]
    types = [*("i32" for _ in kernel.push), *map(plan.typed, kernel.reads)]
    made = [plan.typed(t) for t in kernel.writes]
    written = list(kernel.writes)
    if kernel.tied:
        made.append(values[kernel.tied] + plan.dims_of(kernel.tied))
        written.append(kernel.tied)
    for t in written:
        values[t] = f"%_{t}_{i}"
    lines.append(
        f"  {', '.join(values[t] for t in written)} = "
        f"flow.dispatch @{name}_exe::@{_ENTRY}[{', '.join(grid)}]({', '.join(given)}) : "
        f"({', '.join(types)}) -> ({', '.join(made)})"
    )
    return lines
