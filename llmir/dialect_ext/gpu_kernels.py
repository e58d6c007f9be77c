"""Dispatches of the GPU kernels in plugins/cuda: executables that are a compiled file.

    plan = Plan(…)                            # as c_kernels has it, but for its kernels:
        kernels=(
            GpuKernel(
                unit="rows", function="llmir_rms_norm", threads=256,
                reads=("x", "weight"), writes=("y",),
                arguments=(576, 1e-5),        # the numbers after the pointers
                grid=("R",),
            ),
        )
    gpu_lowerings(lambda call: plan, supports)

A kernel gets a pointer for each tensor of `reads`, in that order, and then of `writes`; of a tied
one the last of `reads` is what it writes.  After them come 32-bit numbers: a float is its bits.
A tensor may be read in several places; a grid of zeros is a dispatch that does nothing.

A unit (plugins/build_gpu.py) is PTX for CUDA and a code object for ROCm.  IREE puts the file into
the module as it is, and the driver gets it from there: PTX is compiled when a module is loaded.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from llmir.cpu_levels import OBJECTS as DIRECTORY
from llmir.dialect_ext.base import Call, Lowering
from llmir.dialect_ext.c_kernels import CKernel, Plan
from llmir.errors import CompileError
from llmir.targets import Target

CUDA, HIP = "cuda_ptx", "hip"
GPU_PROVIDERS = (CUDA, HIP)
KINDS = {CUDA: ("cuda",), HIP: ("rocm",)}
"""What kinds of targets each is for."""

_ARCH = "sm_80"  # as in plugins/build_gpu.py: newer GPUs' drivers compile its PTX
_HIP_ARCHES = ("gfx942", "gfx1100")
_FORMATS = {CUDA: ("cuda", "cuda-nvptx-fb", "ptx"), HIP: ("rocm", "rocm-hsaco-fb", "hsaco")}


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuKernel(CKernel):
    """The call of one kernel of a unit.

    unit:       the file that it is in
    threads:    of a workgroup, as its KERNEL(…) says
    arguments:  the numbers after the pointers: names of sizes, integers, floats
    """

    unit: str
    threads: int


def gpu_lowerings(
    plan: Callable[[Call], Plan],
    supports: Callable[[Call, Target], str | None] = lambda call, target: None,
    *,
    providers: tuple[str, ...] = GPU_PROVIDERS,
) -> tuple[Lowering, ...]:
    """The GPU kernels' lowerings of an op, one for each provider.

    supports: asked for targets that can have these kernels.
    """

    def of(provider: str) -> Lowering:
        return Lowering(
            provider=provider,
            supports=lambda call, target: needs_gpu(provider, target) or supports(call, target),
            emit=lambda call, symbol: emit(call, symbol, plan(call), provider),
            flags=lambda target: flags(provider, target),
            kinds=KINDS[provider],
        )

    return tuple(map(of, providers))


def needs_gpu(provider: str, target: Target) -> str | None:
    """Why a target cannot have a provider's kernels, None if it can."""
    if provider == CUDA:
        if target.kind != "cuda":
            return "PTX is for NVIDIA's GPUs"
        is_older = int(target.arch.removeprefix("sm_")) < int(_ARCH.removeprefix("sm_"))
        return f"the PTX is for {_ARCH} and newer, not {target.arch}" if is_older else None
    if target.kind != "rocm":
        return "code objects are for AMD's GPUs"
    if target.arch not in _HIP_ARCHES:
        return f"kernels are compiled for {' and '.join(_HIP_ARCHES)}, not {target.arch}"
    return None


def flags(provider: str, target: Target) -> tuple[str, ...]:
    """The iree-compile flags with which the target's kernels are found.

    The path is relative, as of cpu_levels.object_flags.  Raises CompileError if they are not
    built.
    """
    directory = "cuda" if provider == CUDA else "hip"
    arch = _ARCH if provider == CUDA else target.arch
    if not (DIRECTORY / directory / arch).is_dir():
        raise CompileError(
            f"the kernels of {provider} for {arch} are not built: run `make plugins-{directory}`, "
            "or have other code with --op-priority"
        )
    path = f"{DIRECTORY.name}/{directory}/{arch}"
    return (f"--iree-hal-executable-object-search-path={path}",)


def emit(call: Call, symbol: str, plan: Plan, provider: str) -> str:
    """Module-level MLIR: an executable for each unit, and the function that dispatches them."""
    lines, values = [], {}
    for name, found in call.present:
        wanted = plan.tensors.get(name, found)
        values[name] = f"%{name}"
        if str(wanted) != str(found):
            lines.append(f"  %{name}_any = tensor.cast %{name} : {found} to {wanted}")
            values[name] = f"%{name}_any"
    lines.append(plan.read_sizes(values))
    kernels = [k for k in plan.kernels if isinstance(k, GpuKernel)]
    for i, kernel in enumerate(kernels):
        lines += _dispatch(symbol, i, plan, kernel, values)
    returned = []
    for i, (name, result) in enumerate(zip(plan.results, call.results, strict=True)):
        lines.append(
            f"  %_result_{i} = tensor.cast {values[name]} : {plan.tensors[name]} to {result}"
        )
        returned.append(f"%_result_{i}")
    units = dict.fromkeys(kernel.unit for kernel in kernels)
    executables = [
        _executable(symbol, unit, plan, [k for k in kernels if k.unit == unit], provider)
        for unit in units
    ]
    body = "\n".join(lines)
    return f"""{"".join(executables)}
{call.signature(symbol)} {{
{body}
  return {", ".join(returned)} : {", ".join(map(str, call.results))}
}}
"""


def _executable(symbol: str, unit: str, plan: Plan, kernels: list[GpuKernel], provider: str) -> str:
    backend, form, suffix = _FORMATS[provider]
    exports = "".join(
        _export(plan, kernel, ordinal)
        for ordinal, kernel in enumerate({k.function: k for k in kernels}.values())
    )
    # IREE 3.13 takes these properties in the generic form only.
    return f"""
"hal.executable.source"() <{{sym_name = "{symbol}_{unit}", sym_visibility = "private",
    objects = #hal.executable.objects<{{#hal.executable.target<"{backend}", "{form}"> = [
      #hal.executable.object<{{path = "{unit}.{suffix}"}}>]}}>}}> ({{{exports}
  "hal.executable.source_end"() : () -> ()
}}) : () -> ()
"""


def _export(plan: Plan, kernel: GpuKernel, ordinal: int) -> str:
    tensors = (*kernel.reads, *kernel.writes)
    bindings = ", ".join(
        "#hal.pipeline.binding<storage_buffer"
        + ("" if t in kernel.writes or t == kernel.tied else ", ReadOnly")
        + ">"
        for t in tensors
    )
    sizes = "".join(f", %{s}: index" for s in plan.passed)
    dims = [*kernel.grid, "1", "1"][:3]
    grid = "\n".join(f"    %_{d} = {_index(v)}" for d, v in zip("xyz", dims, strict=True))
    return f"""
  "hal.executable.export"() <{{sym_name = "{kernel.function}", ordinal = {ordinal} : index,
      layout = #hal.pipeline.layout<constants = {len(kernel.arguments)}, bindings = [{bindings}]>,
      workgroup_size = [{kernel.threads} : index, 1 : index, 1 : index]}}> ({{
  ^bb0(%_device_: !hal.device{sizes}):
    %_one_ = arith.constant 1 : index
{plan.shapes}
{grid}
    hal.return %_x, %_y, %_z : index, index, index
  }}, {{}}) : () -> ()"""


def _dispatch(
    symbol: str, i: int, plan: Plan, kernel: GpuKernel, values: dict[str, str]
) -> list[str]:
    """The dispatch of one kernel; `values` gets what it writes."""
    lines, numbers = [], []
    for at, argument in enumerate(kernel.arguments):
        number = f"%_number_{i}_{at}"
        numbers.append(number)
        if isinstance(argument, str):
            lines.append(f"  {number} = arith.index_cast %{argument} : index to i32")
        else:
            lines.append(f"  {number} = arith.constant {_bits(argument)} : i32")
    given = [*(values[t] for t in kernel.reads), *numbers]
    types = [*map(plan.typed, kernel.reads), *("i32" for _ in numbers)]
    made = [plan.typed(t) for t in kernel.writes]
    if kernel.tied:
        made.append(values[kernel.tied] + plan.dims_of(kernel.tied))
    changed = (*kernel.writes, *filter(None, [kernel.tied]))
    for t in changed:
        values[t] = f"%_{t}_{i}"
    workload = ", ".join(f"%{s}" for s in plan.passed)
    lines.append(
        f"  {', '.join(values[t] for t in changed)} = flow.dispatch "
        f"@{symbol}_{kernel.unit}::@{kernel.function}[{workload}]"
        f"({', '.join(given)}) : ({', '.join(types)}) -> ({', '.join(made)})"
    )
    return lines


def _bits(number: object) -> int:
    if isinstance(number, float):
        return int(struct.unpack("<i", struct.pack("<f", number))[0])
    assert isinstance(number, int), f"{number!r} is no argument of a GPU kernel"
    return number


def _index(value: str) -> str:
    if value.isdigit():
        return f"arith.constant {value} : index"
    return f"arith.muli %{value}, %_one_ : index"
