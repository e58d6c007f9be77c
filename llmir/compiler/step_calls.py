"""The llm ops of a step, as the manifest records them for `llmir bench op`.

They are those of `step_greedy` before lower-llm: each is one call of one lowering.  Equal
calls, of one layer and the next, are one entry with several sources.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from iree.compiler import ir

from llmir.artifact import CallOperand, StepArgument, StepCall
from llmir.dialect_ext.base import Call
from llmir.dialect_ext.types import is_static
from llmir.passes.ir import RESHAPES, call_of, defining_op, operands_of, text_attribute, walk
from llmir.passes.parameters import globals_of, name_of

ENTRY = "step_greedy$async"
_RESHAPES = (*RESHAPES, "flow.tensor.tie_shape")
_VIEWS = (*_RESHAPES, "tensor.extract_slice")
_EMBEDDINGS = ("embedding", "quantized_embedding", "packed_embedding")


def step_calls(module: ir.Module, arguments: Sequence[StepArgument]) -> tuple[StepCall, ...]:
    """The distinct calls, in the order in which they first occur; none without a `step_greedy`.

    arguments: of the step, in order
    """
    found: dict[tuple[object, ...], list[tuple[str, ...]]] = {}
    for view in module.body.operations:
        function = view.operation
        if function.name == "util.func" and text_attribute(function, "sym_name") == ENTRY:
            for key, sources in _Reader(module, arguments).calls(function):
                found.setdefault(key, []).append(sources)
    return tuple(
        StepCall(
            op=str(op),
            label=str(label),
            provider=str(provider),
            variant=str(variant),
            attrs=dict(attrs),  # type: ignore[call-overload]
            operands=operands,  # type: ignore[arg-type]
            sources=tuple(sources),
        )
        for (op, label, provider, variant, attrs, operands), sources in found.items()
    )


class _Reader:
    """Where the operands of a function's llm ops come from, and how many rows they have."""

    def __init__(self, module: ir.Module, arguments: Sequence[StepArgument]) -> None:
        self._arguments = arguments
        self._parameters = {
            text_attribute(op, "sym_name"): name_of(op) or "" for op in globals_of(module)
        }
        # Of each llm op's first result: the dynamic size that its elements are a multiple of.
        self._elements: dict[ir.Value, tuple[str, int]] = {}

    def calls(self, function: ir.Operation) -> Iterator[tuple[tuple[object, ...], tuple[str, ...]]]:
        """(what is static about it, its sources) of each llm op, in order."""
        for operation in walk(function):
            if not operation.name.startswith("llm."):
                continue
            call, values = call_of(operation), operands_of(operation)
            there = {name: value for name, value in values.items() if value is not None}
            sources = {name: self._source(value) for name, value in there.items()}
            operands = tuple(
                CallOperand(
                    name=name,
                    kind=self._kind(sources[name]),
                    dtype=t.dtype,
                    dims=self._dims(call, name, there[name]),
                )
                for name, t in call.present
            )
            self._note(call, operation, there)
            provider = (text_attribute(operation, f"llm.{x}") for x in ("provider", "variant"))
            label = label_of(call.op.name, list(sources.values()))
            attrs = tuple(sorted(call.attrs.items()))
            yield (call.op.name, label, *provider, attrs, operands), tuple(sources.values())

    def _kind(self, source: str) -> str:
        if not source:
            return "activations"
        return "argument" if any(a.name == source for a in self._arguments) else "parameter"

    def _source(self, value: ir.Value) -> str:
        operation = defining_op(value)
        while operation is not None:
            if operation.name in _VIEWS:
                value = operation.operands[0]
            elif operation.name == "util.global.load":
                symbol = ir.FlatSymbolRefAttr(operation.attributes["global"]).value
                return self._parameters[symbol]
            elif operation.name == "hal.tensor.import":
                return self._arguments[ir.BlockArgument(operation.operands[0]).arg_number].name
            elif operation.name.startswith("llm.") and _is_pages(value):
                pages = operands_of(operation)["kv"]
                assert pages is not None, "who gives pages takes them"
                value = pages
            else:
                return ""
            operation = defining_op(value)
        return ""

    def _dims(self, call: Call, name: str, value: ir.Value) -> tuple[str, ...]:
        dims = call.type_of(name).shape
        known = self._size(value)
        rest = 1
        for dim in dims[1:]:
            rest *= dim if is_static(dim) else 0
        first = str(dims[0]) if is_static(dims[0]) else "?"
        if first == "?" and known is not None and rest and known[1] % rest == 0:
            times = known[1] // rest
            first = known[0] if times == 1 else f"{known[0]}*{times}"
        return (first, *("?" if not is_static(dim) else str(dim) for dim in dims[1:]))

    def _size(self, value: ir.Value) -> tuple[str, int] | None:
        """(dynamic size, factor): how many elements a value has, where that is known."""
        while value not in self._elements:
            operation = defining_op(value)
            if operation is None:
                return None
            if operation.name == "hal.tensor.import":
                dims = self._arguments[ir.BlockArgument(operation.operands[0]).arg_number].dims
                return (dims[0], 1) if dims in (("T",), ("L",)) else None
            if operation.name not in _RESHAPES:
                return None
            value = operation.operands[0]
        return self._elements[value]

    def _note(self, call: Call, operation: ir.Operation, values: Mapping[str, ir.Value]) -> None:
        """Its first result has as many rows as its first operand that is not pages."""
        name = next(name for name in values if name != "kv")
        rows = self._dims(call, name, values[name])[0]
        result = call.results[0]
        if rows == "?" or is_static(result.shape[0]) or _is_pages(operation.results[0]):
            return
        symbol, _, times = rows.partition("*")
        elements = int(times or 1)
        for dim in result.shape[1:]:
            elements *= int(dim) if is_static(dim) else 0
        self._elements[operation.results[0]] = (symbol, elements)


def _is_pages(value: ir.Value) -> bool:
    return ir.RankedTensorType(value.type).rank == 5


def label_of(op: str, sources: Sequence[str]) -> str:
    """What an op is in the model, by the matrices that it reads: "qkv", "down", "lm_head"."""
    if op in _EMBEDDINGS:
        return "embedding" if sources[1] else "logit rows"
    if op == "paged_attention":
        return "attention"
    if "matmul" not in op and op not in ("linear", "packed_argmax"):
        return op
    matrix = next((s for s in sources[1:] if s), "")
    names = [
        part.removesuffix(".packed").removesuffix(".weight").removesuffix(".quants")
        for part in matrix.split("+")
    ]
    stems = [name.rpartition(".")[2].removesuffix("_proj") for name in names]
    stems = ["lm_head" if stem == "embed_tokens" else stem for stem in stems]
    return ("" if all(len(stem) == 1 for stem in stems) else "_").join(stems) or op
