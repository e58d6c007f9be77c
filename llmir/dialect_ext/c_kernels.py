"""Dispatches of the C kernels in plugins/cpu: executables with their object embedded.

    plan = Plan(
        tensors={"ids": …, "table": …, "y": …},       # as the kernels see them
        dims={"ids": ("T",), "y": ("T",)},            # what their dynamic dims are
        sizes={"T": ("ids", 0)},                      # where index values come from
        shapes="%shares = …",                         # MLIR: others, of the sizes
        kernels=(
            CKernel(
                function="llmir_rows_q8_0", reads=("ids", "table"), writes=("y",),
                arguments=("ids", "table", "y", "T", 576, Id(0), Count(0)),  # as the C function's
                grid=("shares",),
            ),
        ),
        results=("y",),
    )
    kernel_lowering(lambda call: plan, supports)

A lowering gives a dispatch to each kernel of its plan; c_chain gives one to many plans.

A tensor of a C function is a pointer and an offset in elements.  The kernels are linked
into the module: it needs no file beside it.  The object is found by name on the search path
that `flags` gives, which is the directory of the target's ISA level.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from llmir.cpu_levels import OBJECT_FILE, object_flags
from llmir.dialect_ext.base import Call, Lowering
from llmir.dialect_ext.types import TensorType
from llmir.targets import Target

PROVIDER = "cpu_c"
WORKERS = "W"
"""The size that is the number of the device's workers; every plan may use it."""

_OBJECT = f'[#hal.executable.object<{{path = "{OBJECT_FILE}"}}>]'
# Targets without configuration match those that have one: of the two, the module's is taken.
OBJECTS = (
    "#hal.executable.objects<{"
    f'#hal.executable.target<"llvm-cpu", "embedded-elf-x86_64"> = {_OBJECT}, '
    f'#hal.executable.target<"llvm-cpu", "embedded-elf-arm_64"> = {_OBJECT}'
    "}>"
)


@dataclass(frozen=True, slots=True)
class Id:
    """The workgroup's id along a dim of the grid, as a C argument."""

    dim: int


@dataclass(frozen=True, slots=True)
class Count:
    """The number of workgroups along a dim of the grid, as a C argument."""

    dim: int


Argument = str | int | float | Id | Count
"""A tensor's or a size's name, a constant size_t, a constant float, or a place in the grid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CKernel:
    """The call of one C function, for every workgroup of a grid.

    reads:      the tensors that it reads
    writes:     those that it writes, whose contents nobody has written before
    tied:       the one of `reads` that it writes in place; "" if none
    arguments:  what the C function is called with
    grid:       x and y: names of index values, or numbers
    streams:    the one of `reads` that comes from memory, from its first byte on; "" if none
    """

    function: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    arguments: tuple[Argument, ...]
    grid: tuple[str, ...]
    tied: str = ""
    streams: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The C kernels that an op is lowered to, one after the other.

    tensors:  the op's operands by their names, its results and temporary ones
    dims:     index values for each dynamic dim of a tensor that has any
    sizes:    index values that are a dim of an operand: (operand, dim)
    shapes:   MLIR that computes other index values from sizes; no two plans need other names
    results:  the tensors that are the op's results
    """

    tensors: Mapping[str, TensorType]
    sizes: Mapping[str, tuple[str, int]]
    kernels: tuple[CKernel, ...]
    results: tuple[str, ...]
    dims: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    shapes: str = ""

    @property
    def passed(self) -> tuple[str, ...]:
        """The sizes that kernels and grids are computed from, which a dispatch passes on."""
        used = set(re.findall(r"%([\w.$-]+)", self.shapes))
        for kernel in self.kernels:
            used |= {a for a in (*kernel.arguments, *kernel.grid) if isinstance(a, str)}
        return tuple(name for name in (*self.sizes, WORKERS) if name in used)

    def read_sizes(self, operands: Mapping[str, str]) -> str:
        """MLIR that defines the sizes, and what `shapes` makes of them."""
        lines = []
        for name, (operand, dim) in self.sizes.items():
            lines += [
                f"  %_at_{name} = arith.constant {dim} : index",
                f"  %{name} = tensor.dim {operands[operand]}, %_at_{name} : "
                f"{self.tensors[operand]}",
            ]
        if WORKERS in self.passed:
            lines.append(read_workers())
        return "\n".join([*lines, self.shapes])

    def typed(self, name: str) -> str:
        """A tensor's type and dims, as a dispatch names them."""
        return str(self.tensors[name]) + self.dims_of(name)

    def dims_of(self, name: str) -> str:
        dims = self.dims.get(name, ())
        return f"{{{', '.join(f'%{d}' for d in dims)}}}" if dims else ""


def needs_kernels(target: Target) -> str | None:
    """Why a target cannot have C kernels, None if it can."""
    if target.isa_level is None:
        return "C kernels are for CPUs of a known ISA level"
    return None


def flags(target: Target) -> tuple[str, ...]:
    """The iree-compile flags with which the target's kernels are found."""
    assert target.isa_level is not None, f"{target.name} has no C kernels"
    return object_flags(target.isa_level)


def kernel_lowering(
    plan: Callable[[Call], Plan],
    supports: Callable[[Call, Target], str | None],
    pages: str = "rows",
) -> Lowering:
    """The C kernels' lowering of an op.  supports, pages: as of Lowering."""
    return Lowering(
        provider=PROVIDER,
        supports=supports,
        emit=lambda call, symbol: emit(call, symbol, plan(call)),
        flags=flags,
        pages=pages,
        plan=plan,
    )


def emit(call: Call, symbol: str, plan: Plan) -> str:
    """Module-level MLIR: an executable for each kernel, and the function that dispatches them."""
    casts = []
    values: dict[str, str] = {}  # tensor → its SSA value, now
    for name, found in call.present:
        wanted = plan.tensors.get(name, found)
        values[name] = f"%{name}"
        if str(wanted) != str(found):
            casts.append(f"  %{name}_any = tensor.cast %{name} : {found} to {wanted}")
            values[name] = f"%{name}_any"
    sizes = plan.read_sizes(values)
    executables, dispatches = [], []
    for i, kernel in enumerate(plan.kernels):
        name = f"{symbol}_{i}"
        executables.append(_executable(name, plan, kernel))
        dispatches.append(_dispatch(name, i, plan, kernel, values))
    returned = []
    for i, (name, result) in enumerate(zip(plan.results, call.results, strict=True)):
        dispatches.append(
            f"  %_result_{i} = tensor.cast {values[name]} : {plan.tensors[name]} to {result}"
        )
        returned.append(f"%_result_{i}")
    lines = "\n".join([*casts, sizes, *dispatches])
    return f"""{"".join(executables)}
{call.signature(symbol)} {{
{lines}
  return {", ".join(returned)} : {", ".join(map(str, call.results))}
}}
"""


def _executable(name: str, plan: Plan, kernel: CKernel) -> str:
    tensors = (*kernel.reads, *kernel.writes)
    sizes = ", ".join(f"%{s}: index" for s in plan.passed)
    bindings = "".join(f"%{t}_binding: !stream.binding, " for t in tensors)
    pointers = [line for t in tensors for line in pointer(t, plan.tensors[t].dtype)]
    place = Place(
        ids=("%_id_0", "%_id_1"),
        counts=("%_count_0", "%_count_1"),
        text="\n".join(
            f"      %_{what}_{d} = stream.dispatch.workgroup.{what}[{d}] : index"
            for what in ("id", "count")
            for d in (0, 1)
        ),
    )
    call = called(kernel, plan.tensors, place)
    lines = "\n      ".join([*pointers, plan.shapes, place.text, call.text])
    return f"""
stream.executable private @{name}_exe attributes {{
    hal.executable.objects = {OBJECTS}}} {{
  stream.executable.export public @{name}_entry workgroups({sizes})
      -> (index, index, index) {{
{plan.shapes}
{_grid(kernel)}
    stream.return %_x, %_y, %_one : index, index, index
  }}
  builtin.module {{
    {call.declaration}
    func.func @{name}_entry({bindings}{sizes}) {{
      %_zero = arith.constant 0 : index
      {lines}
      return
    }}
  }}
}}
"""


def _dispatch(name: str, i: int, plan: Plan, kernel: CKernel, values: dict[str, str]) -> str:
    """The dispatch of one kernel; `values` gets what it writes."""
    given = [*(values[t] for t in kernel.reads), *(f"%{s}" for s in plan.passed)]
    types = [*map(plan.typed, kernel.reads), *("index" for _ in plan.passed)]
    made = [plan.typed(t) for t in kernel.writes]
    if kernel.tied:
        made.append(values[kernel.tied] + plan.dims_of(kernel.tied))
    for t in (*kernel.writes, *filter(None, [kernel.tied])):
        values[t] = f"%_{t}_{i}"
    names = [values[t] for t in (*kernel.writes, *filter(None, [kernel.tied]))]
    workload = ", ".join(f"%{s}" for s in plan.passed)
    return (
        f"  {', '.join(names)} = flow.dispatch @{name}_exe::@{name}_entry[{workload}]"
        f"({', '.join(given)}) : ({', '.join(types)}) -> ({', '.join(made)})"
    )


def _grid(kernel: CKernel) -> str:
    lines = ["    %_one = arith.constant 1 : index"]
    for name, value in zip(("x", "y"), (*kernel.grid, "1"), strict=False):
        lines.append(f"    %_{name} = {_index(value)}")
    return "\n".join(lines)


def _index(value: str) -> str:
    if value.isdigit():
        return f"arith.constant {value} : index"
    return f"arith.muli %{value}, %_one : index"


# -- calls of C functions, which c_chain makes too ---------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """A workgroup's place in its grid: SSA values for each dim, and MLIR that defines them."""

    ids: tuple[str, ...]
    counts: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class CCall:
    """MLIR of a call, constants included, and of the C function's declaration."""

    text: str
    declaration: str


def called(kernel: CKernel, tensors: Mapping[str, TensorType], place: Place) -> CCall:
    """The call of a kernel's function for one workgroup.

    Every tensor that it reads or writes has %<name>_base and %<name>_at.
    """
    known = {*kernel.reads, *kernel.writes}
    lines: list[str] = []
    values: list[str] = []
    types: list[str] = []
    for position, argument in enumerate(kernel.arguments):
        if isinstance(argument, str) and argument in known:
            values += [f"%{argument}_base", f"%{argument}_at"]
            types += [f"memref<{tensors[argument].dtype}>", "index"]
            continue
        types.append("f32" if isinstance(argument, float) else "index")
        if isinstance(argument, str):
            values.append(f"%{argument}")
        elif isinstance(argument, Id | Count):
            values.append((place.ids if isinstance(argument, Id) else place.counts)[argument.dim])
        else:
            values.append(f"%_arg_{position}")
            lines.append(f"{values[-1]} = arith.constant {_literal(argument)} : {types[-1]}")
    signature = f"({', '.join(types)}) -> ()"
    lines.append(f"func.call @{kernel.function}({', '.join(values)}) : {signature}")
    return CCall("\n      ".join(lines), declared(kernel.function, signature))


def declared(function: str, signature: str) -> str:
    """A C function of the object."""
    arguments, result = signature.split(" -> ")
    returns = "" if result == "()" else f" -> {result}"
    return (
        f"func.func private @{function}{arguments}{returns} attributes {{"
        "hal.import.static, llvm.bareptr = true}"
    )


def _literal(value: float) -> str:
    if isinstance(value, float):
        (bits,) = struct.unpack("<I", struct.pack("<f", value))  # exact, in MLIR's hex form
        return f"0x{bits:08X}"
    return str(value)


def pointer(name: str, dtype: str, binding: str = "", at: str = "%_zero") -> list[str]:
    """%<name>_base and %<name>_at of a binding, or of a place in one.

    Its extent is the kernel's to know.  at: the first byte.
    """
    memref = f"memref<1x{dtype}>"
    return [
        f"%{name}_memref = stream.binding.subspan %{binding or name}_binding[{at}] : "
        f"!stream.binding -> {memref}",
        f"%{name}_base, %{name}_at, %{name}_size, %{name}_stride = "
        f"iree_codegen.extract_strided_metadata %{name}_memref : {memref} "
        f"-> memref<{dtype}>, index, index, index",
    ]


def read_workers() -> str:
    """MLIR: %W, the number of the device's workers.

    A grid that knows it splits work no further than it must.  IREE asks when the module is
    loaded.  (A global of our own, filled by an initializer, it reads too early: what it computes
    of an immutable global it hoists into an initializer that comes first.)
    """
    return """  %_first_device = arith.constant 0 : index
  %_device = hal.devices.get %_first_device : !hal.device
  %_known, %_workers = hal.device.query<%_device : !hal.device>
      key("hal.dispatch" :: "concurrency") : i1, i32 = 1 : i32
  %_one_worker = arith.constant 1 : i32
  %_some_workers = arith.maxsi %_workers, %_one_worker : i32
  %W = arith.index_cast %_some_workers : i32 to index"""


def shares(of: str, size: int) -> str:
    """MLIR: %shares, as many as `size` of a size each need."""
    return f"""    %_share = arith.constant {size} : index
    %shares = arith.ceildivui %{of}, %_share : index"""
