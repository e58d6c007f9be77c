"""Many C kernels in one dispatch: the workers go from one kernel's grid to the next by themselves.

A dispatch of its own costs each kernel some microseconds, of which a decoding step has seven a
layer.  A chain is one dispatch of as many workgroups as there are workers; each claims
workgroups of the first kernel's grid until none are left, waits for the others, and goes on to
the next kernel (plugins/cpu/team.c).  Results between kernels are in one temporary tensor.

    call @chain(team i32[stages, 32], slot, inputs…) → (outputs…, team)

team: counters, zeros at the step's beginning, of which each kernel of the step has its own:
those of this chain begin at `slot`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from llmir.dialect_ext.base import Call
from llmir.dialect_ext.c_kernels import (
    OBJECTS,
    WORKERS,
    Argument,
    CKernel,
    Place,
    Plan,
    called,
    declared,
    pointer,
    read_workers,
)
from llmir.dialect_ext.types import TensorType, is_static

STAGE_INTS = 32  # as in plugins/cpu/team.c
_ALIGNMENT = 64
_BYTES = {"f32": 4, "i32": 4, "f16": 2, "bf16": 2, "i8": 1}
_TEAM = "team"
_NOTHING = "_nothing"  # a place whose first zero bytes are fetched
_MOST_AHEAD = 128 << 10  # bytes: a part of any L2 cache
_WAIT = "(memref<i32>, index, index, index, memref<i8>, index, index) -> ()"


@dataclass(frozen=True, slots=True)
class Step:
    """One op of a chain.  operands: a value's number for each of the op's, None if absent."""

    call: Call
    plan: Plan
    operands: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Chain:
    """Ops that share a dispatch.

    Values are numbered: the inputs, then the results of each step.
    team:     the counters' type
    inputs:   None is an index value, which no kernel reads
    outputs:  those that are needed afterwards; among them every tensor written in place
    """

    team: TensorType
    inputs: tuple[TensorType | None, ...]
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]

    @property
    def key(self) -> object:
        """The same for chains that are the same function."""
        steps = [
            (s.call.op.name, sorted(s.call.attrs.items()), s.call.operands, s.operands)
            for s in self.steps
        ]
        return str((self.team, self.inputs, steps, self.outputs))

    def output_types(self) -> list[TensorType]:
        """The static type of each output."""
        types = [*self.inputs, *(t for s in self.steps for t in s.call.results)]
        found = [types[i] for i in self.outputs]
        return [t for t in found if t is not None]


def emit_chain(chain: Chain, symbol: str) -> str:
    """Module-level MLIR: the executable, and the function that dispatches it."""
    merged = _Merged()
    for i in range(len(chain.inputs)):
        merged.names.append(f"v{i}")
    for step in chain.steps:
        merged.add(step)
    return _Emission(chain, merged, symbol).text()


class _Merged:
    """The plans of a chain's steps as one, their names made different."""

    def __init__(self) -> None:
        self.names: list[str] = []  # of each value, its tensor
        self.tensors: dict[str, TensorType] = {}
        self.dims: dict[str, tuple[str, ...]] = {}
        self.sizes: dict[str, tuple[str, int]] = {}
        self.shapes: list[str] = []
        self.kernels: list[CKernel] = []
        self._num_steps = 0

    def add(self, step: Step) -> None:
        plan, prefix = step.plan, f"s{self._num_steps}_"
        self._num_steps += 1
        operands = zip(step.call.op.operands, step.operands, strict=True)
        tensor_of = {
            spec.name: self.names[number] for spec, number in operands if number is not None
        }
        size_of = {WORKERS: WORKERS}
        for name, (operand, dim) in plan.sizes.items():
            size_of[name] = self._size(tensor_of[operand], plan.tensors[operand], dim, prefix)
        for name, found in plan.tensors.items():
            tensor = tensor_of.setdefault(name, prefix + name)
            self.tensors.setdefault(tensor, found)
            dims = tuple(size_of.get(d, prefix + d) for d in plan.dims.get(name, ()))
            self.dims.setdefault(tensor, dims)

        def value(name: str) -> str:
            return size_of.get(name, prefix + name)

        def argument(given: Argument) -> Argument:
            if not isinstance(given, str):
                return given
            return tensor_of[given] if given in tensor_of else value(given)

        self.shapes.append(re.sub(r"%([\w.$-]+)", lambda match: "%" + value(match[1]), plan.shapes))
        for kernel in plan.kernels:
            self.kernels.append(
                CKernel(
                    function=kernel.function,
                    reads=tuple(tensor_of[t] for t in kernel.reads),
                    writes=tuple(tensor_of[t] for t in kernel.writes),
                    arguments=tuple(map(argument, kernel.arguments)),
                    grid=tuple(g if g.isdigit() else value(g) for g in kernel.grid),
                    tied=tensor_of[kernel.tied] if kernel.tied else "",
                    streams=tensor_of[kernel.streams] if kernel.streams else "",
                )
            )
        self.names += [tensor_of[r] for r in plan.results]

    def _size(self, tensor: str, found: TensorType, dim: int, prefix: str) -> str:
        """The index value that is a dim of a tensor."""
        at = sum(not is_static(d) for d in found.shape[:dim])
        if tensor in self.dims:
            return self.dims[tensor][at]
        name = f"{prefix}{tensor}_{dim}"
        self.sizes[name] = (tensor, dim)
        return name

    def plan(self, results: Sequence[str]) -> Plan:
        return Plan(
            tensors=self.tensors,
            dims=self.dims,
            sizes=self.sizes,
            shapes="\n".join(self.shapes),
            kernels=tuple(self.kernels),
            results=tuple(results),
        )


class _Emission:
    def __init__(self, chain: Chain, merged: _Merged, symbol: str) -> None:
        self.chain, self.symbol, self.team = chain, symbol, chain.team
        self.plan = merged.plan([merged.names[i] for i in chain.outputs])
        written: dict[str, None] = {}  # in order, each once
        read: dict[str, None] = {}
        for kernel in self.plan.kernels:
            read |= {t: None for t in kernel.reads if t not in written}
            written |= dict.fromkeys(kernel.writes)
        self.inputs = list(read)
        self.tied = [t for t in read if any(k.tied == t for k in self.plan.kernels)]
        self.outputs = [t for t in self.plan.results if t not in read]
        self.inside = [t for t in written if t not in self.outputs]
        self.used_once = [
            t for t in self.inside if not any(t in k.reads for k in self.plan.kernels)
        ]
        passed = self.plan.passed
        self.sizes = passed if WORKERS in passed else (*passed, WORKERS)

    def text(self) -> str:
        sizes = ", ".join(f"%{s}: index" for s in self.sizes)
        return f"""
stream.executable private @{self.symbol}_exe attributes {{
    hal.executable.objects = {OBJECTS}}} {{
  stream.executable.export public @{self.symbol}_entry workgroups(%slot: index, {sizes})
      -> (index, index, index) {{
    %_one = arith.constant 1 : index
    stream.return %{WORKERS}, %_one, %_one : index, index, index
  }}
{self._module()}
}}
{self._function()}
"""

    def _module(self) -> str:
        """The entry point, which is what every worker does."""
        bound = [_TEAM, *self.inputs, *self.outputs, *(["work"] if self.inside else [])]
        bindings = ", ".join(f"%{t}_binding: !stream.binding" for t in bound)
        sizes = ", ".join(f"%{s}: index" for s in self.sizes)
        lines = [*pointer(_TEAM, "i32"), *pointer(_NOTHING, "i8", _TEAM)]
        lines += [self.plan.shapes, self._places()]
        for tensor in (*self.inputs, *self.outputs):
            lines += pointer(tensor, self.plan.tensors[tensor].dtype)
        for tensor in self.inside:
            lines += pointer(tensor, self.plan.tensors[tensor].dtype, "work", f"%{tensor}_place")
        declarations = {
            "llmir_claim": declared("llmir_claim", "(memref<i32>, index, index) -> index"),
            "llmir_done": declared("llmir_done", "(memref<i32>, index, index, index) -> ()"),
            "llmir_wait": declared("llmir_wait", _WAIT),
        }
        for i, kernel in enumerate(self.plan.kernels):
            call = called(
                kernel, self.plan.tensors, Place(("%_id_0", "%_id_1"), ("%_x", "%_y"), "")
            )
            declarations[kernel.function] = call.declaration
            lines.append(_stage(i, kernel, call.text, self._wait(i)))
        body, heads = "\n      ".join(lines), "\n    ".join(declarations.values())
        return f"""  builtin.module {{
    {heads}
    func.func @{self.symbol}_entry({bindings}, %slot: index, {sizes}) {{
      %_zero = arith.constant 0 : index
      {body}
      return
    }}
  }}"""

    def _wait(self, i: int) -> str:
        """MLIR: until kernel i is done; nothing after the last one.

        Meanwhile the weights that are streamed next begin to come into the cache.
        """
        later = self.plan.kernels[i + 1 :]
        if not later:
            return ""
        place, ahead = _NOTHING, 0
        following = next((k.streams for k in later if k.streams), None)
        if following in self.inputs:
            found = self.plan.tensors[following]
            place, ahead = following, min(math.prod(found.shape), _MOST_AHEAD)
        return f"""
      %_ahead_{i} = arith.constant {ahead} : index
      func.call @llmir_wait(%{_TEAM}_base, %{_TEAM}_at, %_stage_{i}, %_total_{i},
          %{place}_base, %{place}_at, %_ahead_{i}) : {_WAIT}"""

    def _places(self) -> str:
        """MLIR: where each tensor between kernels begins in `work`, and %work_bytes of it.

        What one kernel alone uses, its scratch memory, is all in the same place.
        """
        lines = [
            f"%_alignment = arith.constant {_ALIGNMENT} : index",
            "%_end_0 = arith.constant 0 : index",
        ]
        end = "%_end_0"
        for tensor in self.inside:
            if tensor in self.used_once:
                continue
            lines += [*self._bytes(tensor), _alias(f"{tensor}_place", end)]
            lines.append(f"%{tensor}_end = arith.addi {end}, %{tensor}_bytes : index")
            end = f"%{tensor}_end"
        most = "%_end_0"
        for tensor in self.used_once:
            lines += [*self._bytes(tensor), _alias(f"{tensor}_place", end)]
            lines.append(f"%{tensor}_most = arith.maxui {most}, %{tensor}_bytes : index")
            most = f"%{tensor}_most"
        lines.append(f"%work_bytes = arith.addi {end}, {most} : index")
        return "\n      ".join(lines)

    def _bytes(self, tensor: str) -> list[str]:
        """MLIR: %<tensor>_bytes, a multiple of the alignment."""
        found = self.plan.tensors[tensor]
        static = math.prod(d for d in found.shape if is_static(d)) * _BYTES[found.dtype]
        name = f"%{tensor}_bytes"
        lines = [f"{name}_0 = arith.constant {static} : index"]
        dims = self.plan.dims.get(tensor, ())
        for i, dim in enumerate(dims):
            lines.append(f"{name}_{i + 1} = arith.muli {name}_{i}, %{dim} : index")
        lines += [
            f"{name}_lines = arith.ceildivui {name}_{len(dims)}, %_alignment : index",
            f"{name} = arith.muli {name}_lines, %_alignment : index",
        ]
        return lines

    def _function(self) -> str:
        """The function: sizes, the dispatch, and the types that callers know."""
        chain, plan = self.chain, self.plan
        arguments, lines = [f"%{_TEAM}: {self.team}", "%slot: index"], []
        values: dict[str, str] = {}
        for i, found in enumerate(chain.inputs):
            if found is None:
                arguments.append(f"%v{i}: index")
                continue
            wanted = plan.tensors.get(f"v{i}", found)
            arguments.append(f"%v{i}: {found}")
            values[f"v{i}"] = f"%v{i}_any"
            lines.append(f"  %v{i}_any = tensor.cast %v{i} : {found} to {wanted}")
        lines.append(plan.read_sizes(values))
        if WORKERS not in plan.passed:
            lines.append(read_workers())
        lines.append(self._places())
        given = [f"%{_TEAM}", *(values[t] for t in self.inputs), "%slot"]
        given += [f"%{s}" for s in self.sizes]
        types = [str(self.team), *map(plan.typed, self.inputs), "index"]
        types += ["index"] * len(self.sizes)
        names = [f"%_{t}_new" for t in self.outputs]
        made = [plan.typed(t) for t in self.outputs]
        if self.inside:
            names.append("%_work")
            made.append("tensor<?xi8>{%work_bytes}")
        names += ["%_team_new", *(f"%_{t}_new" for t in self.tied)]
        made += [f"%{_TEAM}", *(values[t] + plan.dims_of(t) for t in self.tied)]
        workload = ", ".join(["%slot", *(f"%{s}" for s in self.sizes)])
        lines.append(
            f"  {', '.join(names)} = flow.dispatch @{self.symbol}_exe::@{self.symbol}_entry"
            f"[{workload}]({', '.join(given)}) : ({', '.join(types)}) -> ({', '.join(made)})"
        )
        results = chain.output_types()
        for i, (tensor, found) in enumerate(zip(plan.results, results, strict=True)):
            lines.append(
                f"  %_out_{i} = tensor.cast %_{tensor}_new : {plan.tensors[tensor]} to {found}"
            )
        returned = [*(f"%_out_{i}" for i in range(len(results))), "%_team_new"]
        result_types = ", ".join(map(str, [*results, self.team]))
        body = "\n".join(lines)
        return f"""func.func private @{self.symbol}({", ".join(arguments)}) -> ({result_types}) {{
{body}
  return {", ".join(returned)} : {result_types}
}}"""


def _alias(name: str, value: str) -> str:
    return f"%{name} = arith.addi {value}, %_end_0 : index"


def _stage(i: int, kernel: CKernel, call: str, wait: str) -> str:
    """MLIR of one kernel: its workgroups that this worker claims."""

    def grid(value: str) -> str:
        if value.isdigit():
            return f"arith.constant {value} : index"
        return f"arith.addi %{value}, %_zero : index"

    x, y = (*kernel.grid, "1")[:2]
    team = f"%{_TEAM}_base, %{_TEAM}_at, %_stage_{i}"
    return f"""%_before_{i} = arith.constant {i} : index
      %_stage_{i} = arith.addi %slot, %_before_{i} : index
      %_x_{i} = {grid(x)}
      %_y_{i} = {grid(y)}
      %_total_{i} = arith.muli %_x_{i}, %_y_{i} : index
      %_first_{i} = func.call @llmir_claim({team}) : (memref<i32>, index, index) -> index
      scf.while (%_at = %_first_{i}) : (index) -> index {{
        %_more = arith.cmpi ult, %_at, %_total_{i} : index
        scf.condition(%_more) %_at : index
      }} do {{
      ^bb0(%_id: index):
        %_x = arith.addi %_x_{i}, %_zero : index
        %_y = arith.addi %_y_{i}, %_zero : index
        %_id_0 = arith.remui %_id, %_x : index
        %_id_1 = arith.divui %_id, %_x : index
        {call}
        func.call @llmir_done({team}, %_total_{i}) : (memref<i32>, index, index, index) -> ()
        %_next = func.call @llmir_claim({team}) : (memref<i32>, index, index) -> index
        scf.yield %_next : index
      }}{wait}"""
