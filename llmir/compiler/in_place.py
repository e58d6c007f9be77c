"""The check that a compiled step writes its KV cache in place and widens no weight.

That the cache is updated in place is copy elision, not a promise of IREE, so the
compiler looks at the stream IR of every module, where each copy and allocation
is an operation with a size.  A size is an SSA value; it is evaluated here by
walking back to constants and to the dims of the arguments.

Refused: a copy or allocation whose size grows with the number of pages, or whose
part that no dynamic size changes is as large as the smallest weight matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from iree.compiler import ir

from llmir.artifact import KvLayout
from llmir.errors import CompileError, InPlaceError
from llmir.passes.ir import parse_module, walk

_COPIES = ("stream.cmd.copy", "stream.async.copy", "stream.async.clone")
_ALLOCATIONS = ("stream.resource.alloca", "stream.resource.alloc")
_NUM_INDEX_ARGUMENTS = 8  # of `step`, before the KV tensors

_BINARY: dict[str, Callable[[int, int], int]] = {
    "arith.addi": lambda a, b: a + b,
    "arith.subi": lambda a, b: a - b,
    "arith.muli": lambda a, b: a * b,
    "arith.divui": lambda a, b: a // b,
    "arith.divsi": lambda a, b: a // b,
    "arith.ceildivsi": lambda a, b: -(-a // b),
    "arith.ceildivui": lambda a, b: -(-a // b),
    "arith.remui": lambda a, b: a % b,
    "arith.remsi": lambda a, b: a % b,
    "arith.maxsi": max,
    "arith.maxui": max,
    "arith.minsi": min,
    "arith.minui": min,
    "arith.andi": lambda a, b: a & b,
    "arith.ori": lambda a, b: a | b,
    "arith.shli": lambda a, b: a << b,
    "arith.shrui": lambda a, b: a >> b,
    "util.align": lambda a, b: -(-a // b) * b,
}
_CASTS = ("arith.index_cast", "arith.index_castui", "arith.extui", "arith.extsi", "arith.trunci")
_COMPARE: dict[int, Callable[[int, int], bool]] = {
    0: lambda a, b: a == b,
    1: lambda a, b: a != b,
    2: lambda a, b: a < b,
    3: lambda a, b: a <= b,
    4: lambda a, b: a > b,
    5: lambda a, b: a >= b,
    6: lambda a, b: a < b,
    7: lambda a, b: a <= b,
    8: lambda a, b: a > b,
    9: lambda a, b: a >= b,
}


def check_in_place(stream: str, kv: KvLayout, smallest_matrix_bytes: int) -> None:
    """Raise InPlaceError if a module's stream IR copies or allocates too much.

    Args:
        stream: what iree_compile.to_stream gave
        smallest_matrix_bytes: bytes of the smallest weight matrix as stored
    """
    num_layers = len(kv.group_of_layer)

    def sizes(num_pages: int, others: int) -> _Sizes:
        return _Sizes(_NUM_INDEX_ARGUMENTS, num_layers, num_pages, others)

    # Sizes are rounded up to 64 bytes; these multiples of 64 are not.
    few, many, double = sizes(1, 1024), sizes(1_000_003, 1024), sizes(1, 2048)
    for operation, size in _sized_operations(parse_module(stream)):
        small, large = few.value(size), many.value(size)
        if large != small:
            raise InPlaceError(
                f"the compiled step would {_verb(operation)} KV pages: {operation.name} of "
                f"{large - small} bytes more for a pool of 1,000,003 pages than for one page"
            )
        # Activations double, a weight stays.  (What grows faster comes out below 0.)
        fixed = 2 * small - double.value(size)
        if fixed >= smallest_matrix_bytes:
            raise InPlaceError(
                f"the compiled step would {_verb(operation)} as much as a weight, whatever is in "
                f"the batch: {operation.name} of {fixed} bytes; the smallest matrix has "
                f"{smallest_matrix_bytes}"
            )


def _verb(operation: ir.Operation) -> str:
    return "copy" if operation.name in _COPIES else "allocate"


def _sized_operations(module: ir.Module) -> Iterator[tuple[ir.Operation, ir.Value]]:
    """Copies and allocations of the step, and of what runs at load, with their sizes in bytes.

    IREE moves what depends on weights alone to the load: a widened weight shows there.
    """
    for function in module.body.operations:
        if function.operation.name not in ("util.func", "util.initializer"):
            continue
        for operation in walk(function.operation):
            if operation.name in _COPIES:
                yield operation, operation.operands[-1]
            elif operation.name in _ALLOCATIONS:
                yield from ((operation, size) for size in _transient_sizes(operation))


def _transient_sizes(allocation: ir.Operation) -> Iterator[ir.Value]:
    """The sizes that an allocation asks for, but for the step's own results (the logits)."""
    resources = [r for r in allocation.results if "stream.resource<" in str(r.type)]
    sizes = [v for v in allocation.operands if str(v.type) == "index"]
    for resource, size in zip(resources, sizes, strict=True):
        if "external" not in str(resource.type):
            yield size


@dataclass(slots=True)
class _Sizes:
    """Evaluates size values: pages dims are `num_pages`, every other dynamic size is `others`."""

    first_kv: int
    num_kv: int
    num_pages: int
    others: int
    known: dict[ir.Value, int] = field(default_factory=dict)

    def value(self, value: ir.Value) -> int:
        if value not in self.known:
            self.known[value] = self._evaluate(value)
        return self.known[value]

    def _evaluate(self, value: ir.Value) -> int:
        if isinstance(value, ir.BlockArgument):
            raise CompileError(f"cannot tell the size {value}: it is a block argument")
        owner = value.owner.operation
        operands = list(owner.operands)
        if owner.name == "arith.constant":
            return int(ir.IntegerAttr(owner.attributes["value"]).value)
        if owner.name in ("hal.device.query", "util.global.load"):
            return 1  # how many workers there are: the scratch memory of one is no copy
        if owner.name == "hal.buffer_view.dim":
            return self._dim(owner)
        if owner.name in _BINARY:
            return _BINARY[owner.name](*map(self.value, operands))
        if owner.name in _CASTS:
            return self.value(operands[0])
        if owner.name == "arith.cmpi":
            predicate = int(ir.IntegerAttr(owner.attributes["predicate"]).value)
            return int(_COMPARE[predicate](*map(self.value, operands)))
        if owner.name == "arith.select":
            return self.value(operands[1 if self.value(operands[0]) else 2])
        if owner.name == "util.assume.int":  # its results are its operands, with bounds known
            return self.value(operands[ir.OpResult(value).result_number])
        raise CompileError(f"cannot tell the size that {owner.name} gives")

    def _dim(self, owner: ir.Operation) -> int:
        view = owner.operands[0]
        if not isinstance(view, ir.BlockArgument):
            raise CompileError(f"cannot tell what {owner} is a dim of")
        is_kv = self.first_kv <= view.arg_number < self.first_kv + self.num_kv
        return self.num_pages if is_kv else self.others
