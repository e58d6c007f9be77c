"""add-greedy-entry: beside `step`, which returns logits, `step_greedy`, which returns token ids.

    step_greedy(the arguments of step) → i32[L] = llm.argmax(logits)

The function is a copy of `step`; IREE finds that their dispatches are the same.  What a
greedy answer needs of a row of logits is one number: the rest is neither written nor moved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from iree.compiler import ir

from llmir.dialect_ext.registry import get_op
from llmir.errors import CompileError
from llmir.passes.base import Pass
from llmir.passes.ir import create_llm_op, walk

_STEP, _GREEDY = "step", "step_greedy"


@dataclass(frozen=True, slots=True)
class AddGreedyEntry(Pass):
    """A module without a function `step` is left alone."""

    name: ClassVar[str] = "add-greedy-entry"

    def run(self, module: ir.Module) -> None:
        functions = {
            _symbol(op.operation): op.operation
            for op in module.body.operations
            if op.operation.name == "util.func"
        }
        if _STEP not in functions:
            return
        with module.context, ir.Location.unknown():
            for name in (f"{_STEP}$async", _STEP):
                if name not in functions:
                    raise CompileError(f"no function @{name} beside @{_STEP}")
                copy = functions[name].clone()
                copy.attributes["sym_name"] = ir.StringAttr.get(name.replace(_STEP, _GREEDY, 1))
                module.body.append(copy)
                if name == _STEP:
                    _call_copy(copy)
                else:
                    _return_ids(copy)


def _symbol(function: ir.Operation) -> str:
    return ir.StringAttr(function.attributes["sym_name"]).value


def _call_copy(function: ir.Operation) -> None:
    for operation in walk(function):
        if operation.name == "util.call":
            name = ir.FlatSymbolRefAttr(operation.attributes["callee"]).value
            greedy = name.replace(_STEP, _GREEDY, 1)
            operation.attributes["callee"] = ir.FlatSymbolRefAttr.get(greedy)


def _return_ids(function: ir.Operation) -> None:
    """logits → barrier → export: the ids of the logits in their place."""
    exports = [op for op in walk(function) if op.name == "hal.tensor.export"]
    if len(exports) != 1:
        raise CompileError(f"@{_symbol(function)} exports {len(exports)} tensors, not its logits")
    (export,) = exports
    barrier = export.operands[0].owner.operation
    if barrier.name != "hal.tensor.barrier":
        raise CompileError(f"@{_symbol(function)} exports no tensor that waits for its writes")
    logits, fence = barrier.operands
    ids_type = ir.Type.parse("tensor<?xi32>")
    with ir.InsertionPoint(export):
        ids = create_llm_op(get_op("argmax"), [logits], {}).results[0]
        done = ir.Operation.create("hal.tensor.barrier", results=[ids_type], operands=[ids, fence])
        first = ir.Operation.create(
            "arith.constant",
            results=[ir.IndexType.get()],
            attributes={"value": ir.IntegerAttr.get(ir.IndexType.get(), 0)},
        )
        size = ir.Operation.create(
            "tensor.dim", results=[ir.IndexType.get()], operands=[done.results[0], first.results[0]]
        )
        made = ir.Operation.create(
            "hal.tensor.export",
            results=[export.results[0].type],
            operands=[done.results[0], size.results[0]],
            attributes={"source_encoding": ir.TypeAttr.get(ids_type)},
        )
    export.results[0].replace_all_uses_with(made.results[0])
    dims = list(export.operands)[1:]
    export.erase()
    for dim in dims:
        if not any(True for _ in dim.uses):
            dim.owner.operation.erase()
    barrier.erase()
