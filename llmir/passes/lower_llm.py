"""lower-llm: every llm op, and every chain of them, becomes a call of a function, inlined.

Calls that are the same in every static respect share one emitted function, so
a model of thirty equal layers emits each lowering once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from iree.compiler import ir

from llmir.dialect_ext.base import Call, Lowering
from llmir.dialect_ext.c_chain import emit_chain
from llmir.dialect_ext.registry import find_lowering
from llmir.errors import CompileError
from llmir.passes.base import Pass
from llmir.passes.chain_kernels import chain_of
from llmir.passes.ir import (
    CHAIN,
    attributes_key,
    call_of,
    llm_ops,
    parse_module,
    run_mlir_pipeline,
    text_attribute,
    walk,
)


@dataclass(frozen=True, slots=True)
class LowerLlm(Pass):
    """Follows what select-providers noted; an op without a note is an error."""

    name: ClassVar[str] = "lower-llm"

    def run(self, module: ir.Module) -> None:
        symbols: dict[object, str] = {}
        with module.context, ir.Location.unknown():
            for operation in [op for op in walk(module.operation) if op.name == CHAIN]:
                chain = chain_of(operation)
                if chain.key not in symbols:
                    symbols[chain.key] = symbol = f"llm_chain_{len(symbols)}"
                    _define(module, emit_chain(chain, symbol), symbol)
                _replace_by_call(operation, symbols[chain.key])
            for operation in llm_ops(module):
                call = call_of(operation)
                lowering = _noted_lowering(operation, call)
                key = (call.op.name, attributes_key(operation), tuple(map(str, call.operands)))
                if key not in symbols:
                    symbols[key] = f"llm_{call.op.name}_{len(symbols)}"
                    _define(module, lowering.emit(call, symbols[key]), symbols[key])
                _replace_by_call(operation, symbols[key])
        run_mlir_pipeline(module, "builtin.module(inline, symbol-dce)")


def _noted_lowering(operation: ir.Operation, call: Call) -> Lowering:
    if "llm.provider" not in operation.attributes:
        raise CompileError(f"llm.{call.op.name} has no provider; run select-providers first")
    provider = text_attribute(operation, "llm.provider")
    return find_lowering(call.op.name, provider, text_attribute(operation, "llm.variant"))


def _define(module: ir.Module, text: str, symbol: str) -> None:
    """Add the functions of `text` to the module."""
    try:
        emitted = parse_module(text, module.context)
    except CompileError as error:
        raise CompileError(
            f"the lowering of {symbol} emits invalid MLIR: {error}\n{text}"
        ) from error
    for operation in _top_level(emitted):
        module.body.append(operation.operation.clone())


def _top_level(module: ir.Module) -> Sequence[ir.OpView]:
    return list(module.body.operations)


def _replace_by_call(operation: ir.Operation, symbol: str) -> None:
    with ir.InsertionPoint(operation):
        call = ir.Operation.create(
            "func.call",
            results=[r.type for r in operation.results],
            operands=list(operation.operands),
            attributes={"callee": ir.FlatSymbolRefAttr.get(symbol)},
        )
    for old, new in zip(operation.results, call.results, strict=True):
        old.replace_all_uses_with(new)
    operation.erase()
