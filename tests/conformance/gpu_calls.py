"""What a GPU kernel's lowering does, carried out on numpy arrays by the emulated kernels.

Grids, buffer sizes and arguments are those of the MLIR that the lowering emits, as in
lowered_calls; the kernels are the sources that are compiled to PTX, run as plugins/cuda/emulated.h
says.  Nothing here has run on a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from iree.compiler import ir

from llmir.dialect_ext.gpu_kernels import CUDA
from llmir.dialect_ext.registry import lowerings_of
from llmir.passes.ir import parse_module, walk
from plugins import gpu

from .lowered_calls import CONTEXT, Array, Lowered, _evaluate, _symbol, place_results, segments_of
from .native import Guarded


@dataclass(frozen=True)
class GpuDispatch:
    """A kernel of a unit, called for a grid.

    tensors: what its pointers point to, in order; a tensor may stand in several places
    fresh:   the positions of those whose contents nobody has written yet
    written: … of those that are changed in place
    """

    unit: str
    function: str
    threads: int
    grid: tuple[int, int, int]
    tensors: tuple[Array, ...]
    numbers: tuple[int, ...]
    fresh: frozenset[int]
    written: frozenset[int]


@dataclass
class GpuLowered(Lowered):
    """One call of an op through its GPU lowering: `lowered(machine, operands)`."""

    provider: str = CUDA

    def __post_init__(self) -> None:
        call = self.op.verify(self.types, self.attrs)
        lowering = next(x for x in lowerings_of(self.op.name) if x.provider == self.provider)
        self.module = parse_module(lowering.emit(call, "op"), CONTEXT)
        top = [op.operation for op in self.module.body]
        self.executables = {_symbol(op): op for op in top if op.name == "hal.executable.source"}
        (self.function,) = (op for op in top if op.name == "func.func")

    def _dispatch(
        self, operation: ir.Operation, values: Mapping[ir.Value, Any]
    ) -> tuple[Any, list[Array]]:
        workload, given, _, result_dims = segments_of(operation, values)
        tensors = [a for a in given if isinstance(a, np.ndarray)]
        numbers = [a for a in given if not isinstance(a, np.ndarray)]
        assert [*map(id, tensors), *map(id, numbers)] == [*map(id, given)], "tensors come first"
        written, fresh, results = place_results(operation, given, result_dims, tensors)
        (entry,) = ir.ArrayAttr(operation.attributes["entry_points"])
        executable, function = ir.SymbolRefAttr(entry).value
        export = next(
            op
            for op in walk(self.executables[executable])
            if op.name == "hal.executable.export" and _symbol(op) == function
        )
        layout = str(export.attributes["layout"])
        assert layout.count("storage_buffer") == len(tensors), layout
        assert f"constants = {len(numbers)}," in layout, layout
        threads = ir.ArrayAttr(export.attributes["workgroup_size"])
        dispatch = GpuDispatch(
            unit=executable.removeprefix("op_"),
            function=function,
            threads=int(ir.IntegerAttr(threads[0])),
            grid=_grid_of(export, workload),
            tensors=tuple(tensors),
            numbers=tuple(int(n) & 0xFFFFFFFF for n in numbers),
            fresh=fresh,
            written=written,
        )
        return dispatch, results


def _grid_of(export: ir.Operation, workload: list[int]) -> tuple[int, int, int]:
    (block,) = export.regions[0].blocks
    _, *arguments = block.arguments
    values: dict[ir.Value, Any] = dict(zip(arguments, workload, strict=True))
    for view in block.operations:
        if view.operation.name == "hal.return":
            x, y, z = (values[v] for v in view.operation.operands)
            return x, y, z
        _evaluate(view.operation, values)
    raise AssertionError("no grid")


@dataclass
class EmulatedGpu:
    """The emulated kernels, on buffers between pages that cannot be accessed."""

    at_end: bool = True
    poison: int = 0xFF
    called: set[str] = field(default_factory=set)

    def __call__(self, dispatch: Any) -> None:
        assert isinstance(dispatch, GpuDispatch)
        if not any(dispatch.grid):
            return  # IREE passes over a grid of zeros
        assert all(dispatch.grid), f"{dispatch.function}: grid {dispatch.grid} is half zeros"
        self.called.add(f"{dispatch.unit}.{dispatch.function}")
        memory = [
            Guarded(
                tensor,
                at_end=self.at_end,
                fill=self.poison if i in dispatch.fresh else None,
                writable=i in dispatch.written,
            )
            for i, tensor in enumerate(dispatch.tensors)
        ]
        arguments = [*(held.address for held in memory), *dispatch.numbers]
        gpu.call(dispatch.unit, dispatch.function, dispatch.grid, dispatch.threads, arguments)
        for i, (tensor, held) in enumerate(zip(dispatch.tensors, memory, strict=True)):
            held.check(f"{dispatch.function}, tensor {i}")
            if i in dispatch.written:
                tensor.reshape(-1).view(np.uint8)[:] = held.bytes
            held.close()
