"""Entry points beside `step` that return less of its logits, or something made of them.

Each is a copy of `step`; IREE finds that their dispatches are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from iree.compiler import ir

from llmir.errors import CompileError
from llmir.passes.ir import walk

_STEP = "step"
_VIEW = "!hal.buffer_view"


def functions_of(module: ir.Module) -> dict[str, ir.Operation]:
    """The functions of a module by name."""
    functions = (op.operation for op in module.body.operations)
    return {_symbol(op): op for op in functions if op.name == "util.func"}


def logits_of(functions: dict[str, ir.Operation]) -> ir.Value | None:
    """What `step` returns before it is exported; None where there is no `step`.

    Raises CompileError if that is not one tensor, or there is no asynchronous form beside it.
    """
    if _STEP not in functions:
        return None
    name = f"{_STEP}$async"
    if name not in functions:
        raise CompileError(f"no function @{name} beside @{_STEP}")
    return _ending(functions[name])[1].operands[0]


def add_entry(
    module: ir.Module, name: str, results_of: Callable[[ir.Value], Sequence[ir.Value]]
) -> None:
    """Add `name` and its asynchronous form: `step` with other results.

    results_of: makes them of the logits, at the current insertion point; each has as many rows
    """
    functions = functions_of(module)
    inner, outer = (functions[f"{_STEP}{kind}"].clone() for kind in ("$async", ""))
    for function in (inner, outer):
        symbol = _symbol(function).replace(_STEP, name, 1)
        function.attributes["sym_name"] = ir.StringAttr.get(symbol)
        module.body.append(function)
    views = _return_instead(inner, results_of)
    _call_instead(outer, f"{name}$async", len(views))


def _symbol(function: ir.Operation) -> str:
    return ir.StringAttr(function.attributes["sym_name"]).value


def _ending(function: ir.Operation) -> tuple[ir.Operation, ir.Operation]:
    """logits → barrier → export: the export and the barrier."""
    exports = [op for op in walk(function) if op.name == "hal.tensor.export"]
    if len(exports) != 1:
        raise CompileError(f"@{_symbol(function)} exports {len(exports)} tensors, not its logits")
    barrier = exports[0].operands[0].owner.operation
    if barrier.name != "hal.tensor.barrier":
        raise CompileError(f"@{_symbol(function)} exports no tensor that waits for its writes")
    return exports[0], barrier


def _return_instead(
    function: ir.Operation, results_of: Callable[[ir.Value], Sequence[ir.Value]]
) -> Sequence[ir.Value]:
    """Results made of the logits in their place; returns their views."""
    export, barrier = _ending(function)
    logits, fence = barrier.operands
    with ir.InsertionPoint(export):
        results = results_of(logits)
        done = ir.Operation.create(
            "hal.tensor.barrier", results=[r.type for r in results], operands=[*results, fence]
        ).results
        zero = ir.IntegerAttr.get(ir.IndexType.get(), 0)
        first = ir.Operation.create(
            "arith.constant", results=[zero.type], attributes={"value": zero}
        ).results[0]
        views = [_export(tensor, first) for tensor in done]
    _return(function, views)
    dims = list(export.operands)[1:]
    export.erase()
    for dim in dims:
        if not any(True for _ in dim.uses):
            dim.owner.operation.erase()
    barrier.erase()
    return views


def _export(tensor: ir.Value, first: ir.Value) -> ir.Value:
    size = ir.Operation.create(
        "tensor.dim", results=[ir.IndexType.get()], operands=[tensor, first]
    ).results[0]
    return ir.Operation.create(
        "hal.tensor.export",
        results=[ir.Type.parse(_VIEW)],
        operands=[tensor, size],
        attributes={"source_encoding": ir.TypeAttr.get(tensor.type)},
    ).results[0]


def _call_instead(function: ir.Operation, name: str, num_results: int) -> None:
    """The synchronous form calls the asynchronous one of that name."""
    calls = [op for op in walk(function) if op.name == "util.call"]
    if len(calls) != 1:
        raise CompileError(f"@{_symbol(function)} has {len(calls)} calls, not one")
    (call,) = calls
    attributes = {a.name: a.attr for a in _attributes(call)}
    with ir.InsertionPoint(call):
        made = ir.Operation.create(
            "util.call",
            results=[ir.Type.parse(_VIEW)] * num_results,
            operands=list(call.operands),
            attributes={**attributes, "callee": ir.FlatSymbolRefAttr.get(name)},
        )
    _return(function, made.results)
    call.erase()


def _attributes(operation: ir.Operation) -> list[ir.NamedAttribute]:
    return [operation.attributes[i] for i in range(len(operation.attributes))]


def _return(function: ir.Operation, values: Sequence[ir.Value]) -> None:
    """Return `values`; the function's type says so."""
    old = next(op for op in walk(function) if op.name == "util.return")
    with ir.InsertionPoint(old):
        ir.Operation.create("util.return", operands=list(values))
    old.erase()
    inputs = ir.FunctionType(ir.TypeAttr(function.attributes["function_type"]).value).inputs
    kind = ir.FunctionType.get(inputs, [v.type for v in values])
    function.attributes["function_type"] = ir.TypeAttr.get(kind)
