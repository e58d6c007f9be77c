"""What a C kernel's lowering does, carried out on numpy arrays: its dispatches, one by one.

The MLIR that a lowering emits says how large each buffer is, over which grid a C function is
called, and with which arguments.  IREE compiles that; here it is interpreted, so that the very
same calls can be made on buffers that end at a guard page, in any order of the workgroups, on
any ISA level's kernels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from iree.compiler import ir

from llmir.dialect_ext.base import AttrValue, Lowering, Op
from llmir.dialect_ext.c_kernels import PROVIDER
from llmir.dialect_ext.types import TensorType
from llmir.passes.ir import parse_module, walk

Array = np.ndarray[Any, Any]
# bf16 has no dtype in numpy: its bits are uint16.
NUMPY = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16, "i32": np.int32, "i8": np.int8}


@dataclass(frozen=True)
class Pointer:
    """The base of a tensor; the offset in elements follows it as an argument of its own."""

    tensor: int


@dataclass(frozen=True)
class Offset:
    tensor: int


@dataclass(frozen=True)
class Place:
    """A workgroup's id along a dim of the grid, or how many there are."""

    dim: int
    is_count: bool


# Of all calls: a context takes longer to make than a lowering takes to parse.
CONTEXT = ir.Context()

Argument = Pointer | Offset | Place | int | float


@dataclass(frozen=True)
class Dispatch:
    """Calls of one C function, one for each workgroup of the grid.

    tensors: what its pointers point to, C-contiguous; those of `written` are changed in place
    fresh:   those whose contents nobody has written yet: results, and scratch memory
    """

    function: str
    arguments: tuple[Argument, ...]
    tensors: tuple[Array, ...]
    written: frozenset[int]
    fresh: frozenset[int]
    grid: tuple[int, int, int]

    def workgroups(self) -> Iterator[tuple[int, int, int]]:
        return itertools.product(*map(range, self.grid))

    def arguments_of(self, workgroup: tuple[int, int, int]) -> Iterator[Argument]:
        """The arguments, with the places of one workgroup."""
        for argument in self.arguments:
            if isinstance(argument, Place):
                yield (self.grid if argument.is_count else workgroup)[argument.dim]
            else:
                yield argument


Machine = Callable[[Dispatch], None]
"""Makes the calls of a dispatch."""


class Runs(Protocol):
    """What `Lowered` is: something that runs on a machine."""

    def __call__(
        self, machine: Machine, operands: Sequence[Array | None], *, workers: int = 2
    ) -> list[Array]: ...


def c_lowering(op: Op) -> Lowering:
    return next(x for x in op.lowerings if x.provider == PROVIDER)


@dataclass
class Lowered:
    """One call of an op through its C lowering: `lowered(machine, operands)`."""

    op: Op
    types: Sequence[TensorType | None]
    attrs: Mapping[str, AttrValue]
    module: ir.Module = field(init=False)
    function: ir.Operation = field(init=False)
    executables: dict[str, ir.Operation] = field(init=False)

    def __post_init__(self) -> None:
        call = self.op.verify(self.types, self.attrs)
        self.module = parse_module(c_lowering(self.op).emit(call, "op"), CONTEXT)
        top = [op.operation for op in self.module.body]
        self.executables = {_symbol(op): op for op in top if op.name == "stream.executable"}
        (self.function,) = (op for op in top if op.name == "func.func")

    def __call__(
        self, machine: Machine, operands: Sequence[Array | None], *, workers: int = 2
    ) -> list[Array]:
        """The results; `operands` are left as they are."""
        (block,) = self.function.regions[0].blocks
        present = []
        for operand, wanted in zip(operands, self.types, strict=True):
            if operand is not None and wanted is not None:
                assert operand.dtype == NUMPY[wanted.dtype], f"{operand.dtype} for {wanted}"
                present.append(operand)
        values: dict[ir.Value, Any] = dict(
            zip(block.arguments, map(np.ascontiguousarray, present), strict=True)
        )
        for view in block.operations:
            operation = view.operation
            if operation.name == "func.return":
                return [values[v] for v in operation.operands]
            if operation.name == "flow.dispatch":
                dispatch, results = self._dispatch(operation, values)
                machine(dispatch)
                values.update(zip(operation.results, results, strict=True))
            elif operation.name == "hal.devices.get":
                values[operation.results[0]] = None
            elif operation.name == "hal.device.query":
                known, found = operation.results
                values[known], values[found] = True, workers
            else:
                _evaluate(operation, values)
        raise AssertionError("no return")

    def _dispatch(
        self, operation: ir.Operation, values: Mapping[ir.Value, Any]
    ) -> tuple[Dispatch, list[Array]]:
        workload, given, _, result_dims = segments_of(operation, values)
        tensors = [a for a in given if isinstance(a, np.ndarray)]
        written, fresh, results = place_results(operation, given, result_dims, tensors)
        (entry,) = ir.ArrayAttr(operation.attributes["entry_points"])
        executable = self.executables[ir.SymbolRefAttr(entry).value[0]]
        function, arguments = _call_in(executable, workload)
        dispatch = Dispatch(
            function, arguments, tuple(tensors), written, fresh,
            _grid_of(executable, workload),
        )  # fmt: skip
        return dispatch, results


def segments_of(operation: ir.Operation, values: Mapping[ir.Value, Any]) -> list[list[Any]]:
    """A dispatch's workload, arguments, their dims and its results' dims."""
    parts, at = [], 0
    for size in list(ir.DenseI32ArrayAttr(operation.attributes["operandSegmentSizes"])):
        parts.append([values[v] for v in list(operation.operands)[at : at + size]])
        at += size
    return parts


def place_results(
    operation: ir.Operation, given: Sequence[Any], result_dims: Sequence[int], tensors: list[Array]
) -> tuple[frozenset[int], frozenset[int], list[Array]]:
    """Which of `tensors` are written and which of them are new, and the dispatch's results.

    Puts a copy in the place of a tied argument, and new results behind the arguments.
    """
    written, fresh, results = set(), set(), []
    dims = iter(result_dims)
    tied = [int(ir.IntegerAttr(a)) for a in ir.ArrayAttr(operation.attributes["tied_operands"])]
    for result, operand in zip(operation.results, tied, strict=True):
        found = TensorType.parse(str(result.type))
        assert found is not None
        shape = [next(dims) if d is None else d for d in found.shape]
        if operand >= 0:
            at = next(i for i, a in enumerate(tensors) if a is given[operand])
            tensors[at] = tensors[at].copy()
        else:
            at = len(tensors)
            tensors.append(np.zeros(shape, NUMPY[found.dtype]))
            fresh.add(at)
        written.add(at)
        results.append(tensors[at])
    return frozenset(written), frozenset(fresh), results


def _grid_of(executable: ir.Operation, workload: list[int]) -> tuple[int, int, int]:
    export = next(op for op in walk(executable) if op.name == "stream.executable.export")
    (block,) = export.regions[0].blocks
    values: dict[ir.Value, Any] = dict(zip(block.arguments, workload, strict=True))
    for view in block.operations:
        if view.operation.name == "stream.return":
            x, y, z = (values[v] for v in view.operation.operands)
            return x, y, z
        _evaluate(view.operation, values)
    raise AssertionError("no grid")


def _call_in(executable: ir.Operation, workload: list[int]) -> tuple[str, tuple[Argument, ...]]:
    """The C function that the entry point calls, and with what."""
    entry = next(
        op
        for op in walk(executable)
        if op.name == "func.func" and op.regions[0].blocks and len(list(op.regions[0].blocks))
    )
    (block,) = entry.regions[0].blocks
    bindings = len(block.arguments) - len(workload)
    values: dict[ir.Value, Any] = {
        argument: i if i < bindings else workload[i - bindings]
        for i, argument in enumerate(block.arguments)
    }
    for view in block.operations:
        op = view.operation
        match op.name:
            case "stream.binding.subspan":
                assert values[op.operands[1]] == 0
                values[op.results[0]] = values[op.operands[0]]
            case "iree_codegen.extract_strided_metadata":
                tensor = values[op.operands[0]]
                values[op.results[0]], values[op.results[1]] = Pointer(tensor), Offset(tensor)
            case "stream.dispatch.workgroup.id" | "stream.dispatch.workgroup.count":
                dim = int(ir.IntegerAttr(op.attributes["dimension"]))
                values[op.results[0]] = Place(dim, op.name.endswith("count"))
            case "func.call":
                callee = ir.FlatSymbolRefAttr(op.attributes["callee"]).value
                return callee, tuple(values[v] for v in op.operands)
            case _:
                _evaluate(op, values)
    raise AssertionError("no call")


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


_ARITH: dict[str, Callable[..., Any]] = {
    "addi": lambda a, b: a + b,
    "subi": lambda a, b: a - b,
    "muli": lambda a, b: a * b,
    "divui": lambda a, b: a // b,
    "remui": lambda a, b: a % b,
    "ceildivui": _ceil_div,
    "minui": min,
    "maxsi": max,
    "index_cast": lambda a: a,
    "maxui": max,
    "andi": lambda a, b: a and b,
    "ori": lambda a, b: a or b,
    "select": lambda c, a, b: a if c else b,
}
_COMPARE: tuple[Callable[[int, int], bool], ...] = (
    lambda a, b: a == b,
    lambda a, b: a != b,
    *(lambda a, b: a < b, lambda a, b: a <= b, lambda a, b: a > b, lambda a, b: a >= b) * 2,
)


def index_values(text: str, names: Sequence[str], **given: int) -> dict[str, int]:
    """Of MLIR that computes index values of others, those of these names."""
    arguments = ", ".join(f"%{name}: index" for name in given)
    types = ", ".join(["index"] * len(names))
    returned = ", ".join(f"%{name}" for name in names)
    module = parse_module(
        f"func.func @f({arguments}) -> ({types}) {{\n{text}\n  return {returned} : {types}\n}}",
        CONTEXT,
    )
    (block,) = module.body.operations[0].regions[0].blocks
    values: dict[ir.Value, Any] = dict(zip(block.arguments, given.values(), strict=True))
    *computed, last = block
    for op in computed:
        _evaluate(op.operation, values)
    return {name: values[v] for name, v in zip(names, last.operation.operands, strict=True)}


def _evaluate(op: ir.Operation, values: dict[ir.Value, Any]) -> None:
    """One operation on sizes, or one that only sees a tensor otherwise."""
    operands = [values[v] for v in op.operands]
    name = op.name.removeprefix("arith.")
    if op.name == "tensor.cast":
        result: Any = operands[0]
    elif op.name == "tensor.dim":
        result = operands[0].shape[operands[1]]
    elif name == "constant":
        value = op.attributes["value"]
        result = (
            float(ir.FloatAttr(value)) if isinstance(value, ir.FloatAttr) else ir.IntegerAttr(value)
        )
        result = result if isinstance(result, float) else int(result)
    elif name == "cmpi":
        result = _COMPARE[int(ir.IntegerAttr(op.attributes["predicate"]))](*operands)
    else:
        assert name in _ARITH, f"the suite does not know {op.name}: add it to _ARITH"
        result = _ARITH[name](*operands)
    values[op.results[0]] = result


def _symbol(op: ir.Operation) -> str:
    return ir.StringAttr(op.attributes["sym_name"]).value
