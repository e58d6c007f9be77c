"""Portable lowerings for CPUs that say what one workgroup does.

A `linalg.generic` whose body loops is scalar code on a CPU: IREE vectorises
structured ops only, and LLVM's vectorisers (`--iree-llvmcpu-slp-vectorization`,
`--iree-llvmcpu-loop-vectorization`) gained at most 15 % on such bodies.  Here
the lowering writes the loop itself, with `vector` ops that LLVM legalises for
any CPU, inside a `flow.dispatch.workgroups`: no flag, no object file, and the
order of every sum is in the text, so that it is the same in every run.

The op's result is written with `Workgroups.store`; names of dynamic sizes are
those of the op's signature (`T`, `N`, …), and the body reads them as `%T`, `%N`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmir.dialect_ext.base import Call
from llmir.dialect_ext.types import TensorType, is_static
from llmir.targets import Target


def cpu_only(call: Call, target: Target) -> str | None:
    """A `supports` for these lowerings: GPUs need a body distributed over threads."""
    return None if target.is_cpu else "one workgroup is one thread here, which suits CPUs only"


def indented(columns: int, lines: Sequence[str]) -> str:
    """The lines, to stand in a template where the first is indented already."""
    return ("\n" + " " * columns).join(lines)


def sum_lanes(name: str, vector: str, lanes: int) -> list[str]:
    """`%name`: the sum of an f32 vector of 2^n lanes, each step adding its two halves.

    A `vector.reduction <add>` would become one addition per lane.
    """
    result, steps = vector, []
    while lanes > 1:
        whole, lanes = f"vector<{lanes}xf32>", lanes // 2
        half = f"vector<{lanes}xf32>"
        for part, offset in (("low", 0), ("high", lanes)):
            steps.append(
                f"%{name}_{part}{lanes} = vector.extract_strided_slice %{result} "
                f"offsets = [{offset}], sizes = [{lanes}], strides = [1] : {whole} to {half}"
            )
        steps.append(
            f"%{name}_sum{lanes} = arith.addf %{name}_low{lanes}, %{name}_high{lanes} : {half}"
        )
        result = f"{name}_sum{lanes}"
    return [*steps, f"%{name} = vector.extract %{result}[0] : f32 from vector<1xf32>"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workgroups:
    """One dispatch that computes the only result of a call.

    reads:  operands that the body sees, as tensors of the same names
    count:  workgroups per dim, an int or the name of a dynamic size: (3, "T")
    tied:   operand whose storage the result takes; the body sees it through stores only
    """

    call: Call
    reads: tuple[str, ...]
    count: tuple[int | str, ...]
    tied: str | None = None

    def emit(self, symbol: str, body: str) -> str:
        """The function; `body` is the workgroup's program, `%wg0`, `%wg1`, … its ids."""
        names = [*self.reads, *([self.tied] if self.tied else [])]
        sizes = list(dict.fromkeys(s for n in names for s in self._sizes(n)))
        tensors = [f"{self.call.type_of(n)}{self._dims(n)}" for n in names]
        # A tied result names its operand where another has its type.
        result = f"{f'%{self.tied}' if self.tied else self._result}{self._dims(None)}"
        args = [f"%{n}_arg: {_handle(self.call.type_of(n), 'readonly')}" for n in self.reads]
        out = f"%out_arg: {self._out}"
        size_args = [f"%{s}_arg: index" for s in sizes]
        args += [out, *size_args] if self.tied else [*size_args, out]
        prologue = [f"%wg{i} = flow.dispatch.workgroup.id[{i}] : index" for i in range(3)]
        prologue += [
            f"%{s} = iree_tensor_ext.dispatch.workload.ordinal %{s}_arg, {i} : index"
            for i, s in enumerate(sizes)
        ]
        prologue += [line for n in self.reads for line in self._load(n)]
        prologue.append(f"%out = flow.dispatch.tie_shape %out_arg : {self._out}{self._dims(None)}")
        counts = [self._fixed(n) for n in [*self.count, 1, 1][:3]]
        fixed = dict.fromkeys(n for n in counts if is_static(n))
        return f"""
{self.call.signature(symbol)} {{
  {indented(2, self._measure(sizes))}
  %result = flow.dispatch.workgroups[{", ".join(f"%{s}" for s in sizes)}](
      {", ".join(f"%{n}" for n in [*names, *sizes])}
  ) : ({", ".join([*tensors, *["index"] * len(sizes)])}) -> {result} =
  ({", ".join(args)}) {{
    {indented(4, prologue)}
{body}
    flow.return
  }} count({", ".join(f"%{s}_count: index" for s in sizes)}) -> (index, index, index) {{
    {indented(4, [f"%grid{n} = arith.constant {n} : index" for n in fixed])}
    flow.return {", ".join(f"%grid{n}" if is_static(n) else f"%{n}_count" for n in counts)}
        : index, index, index
  }}
  return %result : {self._result}
}}
"""

    def store(self, value: str, of: str, offsets: Sequence[int | str], sizes: Sequence[int]) -> str:
        """Write the tensor `value`, of type `of`, at `offsets` of the result."""
        ones = ", ".join(["1"] * len(sizes))
        return (
            f"iree_tensor_ext.dispatch.tensor.store {value}, %out, "
            f"offsets = [{', '.join(map(str, offsets))}], "
            f"sizes = [{', '.join(map(str, sizes))}], strides = [{ones}] "
            f": {of} -> {self._out}{self._dims(None)}"
        )

    @property
    def _result(self) -> TensorType:
        return self.call.results[0]

    @property
    def _out(self) -> str:
        return _handle(self._result, "readwrite" if self.tied else "writeonly")

    def _sizes(self, operand: str | None) -> list[str]:
        """The names of an operand's dynamic sizes, in order; None: of the result's."""
        if operand is None:
            # The shape rules of such ops copy an operand's shape: the first that is equal.
            operand = next(n for n, t in self.call.present if t.shape == self._result.shape)
        pairs = zip(self._legend(operand), self.call.type_of(operand).shape, strict=True)
        return [str(name) for name, size in pairs if not is_static(size)]

    def _fixed(self, count: int | str) -> int | str:
        """A count: as it is, or the size that the operands fix for that name."""
        for name, t in self.call.present:
            for dim, size in zip(self._legend(name), t.shape, strict=True):
                if dim == count and is_static(size):
                    return int(size)
        return count

    def _legend(self, operand: str) -> tuple[str | int, ...]:
        return self.call.op.operands[self.call.op.operand_index(operand)].dims

    def _dims(self, operand: str | None) -> str:
        names = self._sizes(operand)
        return f"{{{', '.join('%' + n for n in names)}}}" if names else ""

    def _measure(self, sizes: Sequence[str]) -> list[str]:
        """`%T = tensor.dim …` for every dynamic size, from the first operand that has it."""
        lines = []
        for size in sizes:
            name = next(n for n, _ in self.call.present if size in self._legend(n))
            dim = self._legend(name).index(size)
            lines += [
                f"%{size}_dim = arith.constant {dim} : index",
                f"%{size} = tensor.dim %{name}, %{size}_dim : {self.call.type_of(name)}",
            ]
        return lines

    def _load(self, name: str) -> list[str]:
        """The operand as a tensor `%name` in the body; a view of the storage, no copy."""
        t, dims = self.call.type_of(name), self._dims(name)
        handle = f"{_handle(t, 'readonly')}{dims}"
        sizes = [
            str(size) if is_static(size) else f"%{dim}"
            for dim, size in zip(self._legend(name), t.shape, strict=True)
        ]
        return [
            f"%{name}_in = flow.dispatch.tie_shape %{name}_arg : {handle}",
            f"%{name} = iree_tensor_ext.dispatch.tensor.load %{name}_in, "
            f"offsets = [{', '.join(['0'] * t.rank)}], sizes = [{', '.join(sizes)}], "
            f"strides = [{', '.join(['1'] * t.rank)}] : {handle} -> {t}",
        ]


def _handle(t: TensorType, access: str) -> str:
    return f"!iree_tensor_ext.dispatch.tensor<{access}:{t}>"
