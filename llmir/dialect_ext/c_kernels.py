"""Dispatches of the C kernels in plugins/cpu: an executable with their object embedded.

    kernel = CKernel(
        symbol=symbol, function="llmir_rows_q8_0",
        reads=(("ids", …), ("table", …)), writes=(("y", …),),
        sizes=("T",),    # index values that vary from call to call
        arguments=("ids", "table", "y", "T", 576, Id(0), Count(0)),  # as the C function has them
        grid="…",        # MLIR: %x, %y, %z from %T
    )
    kernel.executable()                                  # the module-level text
    kernel.dispatch({"ids": "%ids", …}, …)               # the call

A tensor of the C function is a pointer and an offset in elements.  The kernels are linked
into the module: it needs no file beside it.  The object is found by name on the search path
that `flags` gives, which is the directory of the target's ISA level.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from llmir.cpu_levels import OBJECT_FILE, object_flags
from llmir.dialect_ext.types import TensorType, is_static
from llmir.targets import Target

PROVIDER = "cpu_c"

_OBJECT = f'[#hal.executable.object<{{path = "{OBJECT_FILE}"}}>]'
# Targets without configuration match those that have one: of the two, the module's is taken.
_OBJECTS = (
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


def needs_kernels(target: Target) -> str | None:
    """Why a target cannot have C kernels, None if it can."""
    if target.isa_level is None:
        return "C kernels are for CPUs of a known ISA level"
    return None


def flags(target: Target) -> tuple[str, ...]:
    """The iree-compile flags with which the target's kernels are found."""
    assert target.isa_level is not None, f"{target.name} has no C kernels"
    return object_flags(target.isa_level)


@dataclass(frozen=True, slots=True, kw_only=True)
class CKernel:
    """One C function, as an executable of one entry point.

    symbol:     unique in the module
    function:   the C function
    reads:      (name, type) of the tensors that it reads
    writes:     (name, type) of the tensors that it writes, each a result of the dispatch
    tied:       the one of `reads` that it writes in place: the last result; "" if none
    sizes:      names of index values that calls pass: the grid's and the arguments'
    arguments:  what the C function is called with
    grid:       MLIR that defines %x, %y and %z from the sizes
    """

    symbol: str
    function: str
    reads: tuple[tuple[str, TensorType], ...]
    writes: tuple[tuple[str, TensorType], ...]
    sizes: tuple[str, ...]
    arguments: tuple[Argument, ...]
    grid: str
    tied: str = ""

    def executable(self) -> str:
        """The executable, module-level MLIR."""
        tensors = dict((*self.reads, *self.writes))
        sizes = ", ".join(f"%{s}: index" for s in self.sizes)
        bindings = ", ".join(f"%{name}_binding: !stream.binding" for name in tensors)
        body: list[str] = []
        passed: list[tuple[str, str]] = []
        for name, tensor in tensors.items():
            body += _pointer(name, tensor.dtype)
        for position, argument in enumerate(self.arguments):
            passed += self._pass(argument, position, tensors, body)
        types = ", ".join(t for _, t in passed)
        call = f"func.call @{self.function}({', '.join(v for v, _ in passed)}) : ({types}) -> ()"
        lines = "\n      ".join([*body, call])
        return f"""
stream.executable private @{self.symbol}_exe attributes {{
    hal.executable.objects = {_OBJECTS}}} {{
  stream.executable.export public @{self.symbol}_entry workgroups({sizes})
      -> (index, index, index) {{
{self.grid}
    stream.return %x, %y, %z : index, index, index
  }}
  builtin.module {{
    func.func private @{self.function}({types}) attributes {{
        hal.import.static, llvm.bareptr = true}}
    func.func @{self.symbol}_entry({bindings}, {sizes}) {{
      %zero = arith.constant 0 : index
      {lines}
      return
    }}
  }}
}}
"""

    def dispatch(
        self, operands: Mapping[str, str], dims: Mapping[str, list[str]], results: Mapping[str, str]
    ) -> str:
        """The dispatch, one statement.

        Args:
            operands: the SSA value of each of `reads`
            dims:     the SSA values of the dynamic dims of each tensor that has any
            results:  the SSA name for each of `writes`, and for `tied`
        """

        def typed(name: str, tensor: TensorType) -> str:
            dynamic = dims.get(name, [])
            assert len(dynamic) == sum(not is_static(d) for d in tensor.shape), name
            return f"{tensor}{{{', '.join(dynamic)}}}" if dynamic else str(tensor)

        values = [operands[name] for name, _ in self.reads] + [f"%{s}" for s in self.sizes]
        types = [typed(name, t) for name, t in self.reads] + ["index"] * len(self.sizes)
        names = [results[name] for name, _ in self.writes]
        given = [typed(name, t) for name, t in self.writes]
        if self.tied:
            names.append(results[self.tied])
            dynamic = dims.get(self.tied, [])
            given.append(operands[self.tied] + (f"{{{', '.join(dynamic)}}}" if dynamic else ""))
        workload = ", ".join(f"%{s}" for s in self.sizes)
        return (
            f"{', '.join(names)} = flow.dispatch @{self.symbol}_exe::@{self.symbol}_entry"
            f"[{workload}]({', '.join(values)}) : ({', '.join(types)}) -> ({', '.join(given)})"
        )

    def _pass(
        self,
        argument: Argument,
        position: int,
        tensors: Mapping[str, TensorType],
        body: list[str],
    ) -> list[tuple[str, str]]:
        """(value, type) of one argument; what defines the value goes to `body`."""
        if isinstance(argument, str):
            if argument in tensors:
                element = tensors[argument].dtype
                return [(f"%{argument}_base", f"memref<{element}>"), (f"%{argument}_at", "index")]
            assert argument in self.sizes, f"{self.function}: no tensor or size {argument!r}"
            return [(f"%{argument}", "index")]
        value = f"%arg_{position}"
        if isinstance(argument, Id | Count):
            what = "id" if isinstance(argument, Id) else "count"
            body.append(f"{value} = stream.dispatch.workgroup.{what}[{argument.dim}] : index")
            return [(value, "index")]
        if isinstance(argument, float):
            (bits,) = struct.unpack("<I", struct.pack("<f", argument))  # exact, in MLIR's hex form
            body.append(f"{value} = arith.constant 0x{bits:08X} : f32")
            return [(value, "f32")]
        body.append(f"{value} = arith.constant {argument} : index")
        return [(value, "index")]


def _pointer(name: str, dtype: str) -> list[str]:
    """%<name>_base and %<name>_at of a binding.  Its extent is the kernel's to know."""
    memref = f"memref<1x{dtype}>"
    return [
        f"%{name}_memref = stream.binding.subspan %{name}_binding[%zero] : "
        f"!stream.binding -> {memref}",
        f"%{name}_base, %{name}_at, %{name}_size, %{name}_stride = "
        f"iree_codegen.extract_strided_metadata %{name}_memref : {memref} "
        f"-> memref<{dtype}>, index, index, index",
    ]


def workgroups(x: str, y: str = "1", z: str = "1") -> str:
    """A grid of constants or of values that the text before it defines."""
    lines = []
    for name, value in (("x", x), ("y", y), ("z", z)):
        if value.isdigit():
            lines.append(f"    %{name} = arith.constant {value} : index")
        else:
            lines.append(f"    %{name} = arith.addi {value}, %none : index")
    return "\n".join(["    %none = arith.constant 0 : index", *lines])


def read_workers() -> str:
    """MLIR: %W, the number of the device's workers.

    A grid that knows it splits work no further than it must.  IREE asks when the module is
    loaded.  (A global of our own, filled by an initializer, it reads too early: what it computes
    of an immutable global it hoists into an initializer that comes first.)
    """
    return """  %first_device = arith.constant 0 : index
  %device = hal.devices.get %first_device : !hal.device
  %known, %workers = hal.device.query<%device : !hal.device>
      key("hal.dispatch" :: "concurrency") : i1, i32 = 1 : i32
  %one_worker = arith.constant 1 : i32
  %some_workers = arith.maxsi %workers, %one_worker : i32
  %W = arith.index_cast %some_workers : i32 to index"""
