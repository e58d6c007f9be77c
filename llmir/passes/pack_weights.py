"""pack-weights: matmuls and tables that kernels compute read a packed weight.

    llm.quantized_matmul, llm.linear        →  llm.packed_matmul
    llm.quantized_embedding, llm.embedding  →  llm.packed_embedding

where select-providers noted a provider of such kernels (packed_matmul.PACKERS).  The weight of a
matrix, or its planes (quants, scales, mins), give way to one parameter in the layout that the
kernels stream; their globals go when nobody reads them any more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from iree.compiler import ir

from llmir.dialect_ext.activations import allowed
from llmir.dialect_ext.base import AttrValue, Call
from llmir.dialect_ext.packed_matmul import PACKERS, packed_format
from llmir.dialect_ext.registry import get_op
from llmir.errors import CompileError
from llmir.formats import packed
from llmir.passes.base import Pass
from llmir.passes.ir import call_of, create_llm_op, llm_ops, operands_of, text_attribute
from llmir.passes.parameters import PackedParameter, load_packed, parameter_name


@dataclass(frozen=True, slots=True)
class PackWeights(Pass):
    """Needs select-providers before it."""

    name: ClassVar[str] = "pack-weights"

    def run(self, module: ir.Module) -> None:
        with module.context, ir.Location.unknown():
            for operation in llm_ops(module):
                if text_attribute(operation, "llm.provider") not in PACKERS:
                    continue
                if operation.name in ("llm.quantized_matmul", "llm.linear"):
                    _pack_matmul(module, operation)
                elif operation.name in ("llm.quantized_embedding", "llm.embedding"):
                    _pack_embedding(module, operation)


def _pack_matmul(module: ir.Module, operation: ir.Operation) -> None:
    call, values = call_of(operation), operands_of(operation)
    rows, cols = call.results[0].shape[1], call.type_of("x").shape[1]
    format_name = _format_name(call, cols)
    there = PACKERS[text_attribute(operation, "llm.provider")](format_name)
    activations = next(a for a in there if a in allowed(str(call.attrs["activations"])))
    weight = _packed_weight(module, operation, format_name, rows, cols)
    _replace(
        operation,
        "packed_matmul",
        [values["x"], weight, None, values["bias"], None],
        {"format": format_name, "activations": activations, "rows": rows},
    )


def _pack_embedding(module: ir.Module, operation: ir.Operation) -> None:
    call, values = call_of(operation), operands_of(operation)
    table = "table" if operation.name == "llm.embedding" else "quants"
    rows, cols = call.type_of(table).shape[0], call.results[0].shape[1]
    format_name = _format_name(call, cols)
    weight = _packed_weight(module, operation, format_name, rows, cols)
    attrs: dict[str, AttrValue] = {"format": format_name, "rows": rows, "cols": cols}
    _replace(operation, "packed_embedding", [values["ids"], weight], attrs)


def _format_name(call: Call, cols: int) -> str:
    found = packed_format(call, cols)
    assert found is not None, "select-providers asked"
    return found


def _packed_weight(
    module: ir.Module, operation: ir.Operation, format_name: str, rows: int, cols: int
) -> ir.Value:
    values = operands_of(operation)
    matrix = next(values[n] for n in ("quants", "weight", "table") if values.get(n) is not None)
    assert matrix is not None
    name = parameter_name(matrix)
    base, _, plane = (name or "").rpartition(".")
    if plane not in ("quants", "weight"):
        raise CompileError(f"{operation.name}: its weight is no parameter, so it cannot be packed")
    num_bytes = packed.FORMATS[format_name].num_bytes(rows, cols)
    recipe = PackedParameter(name=f"{base}.packed", format=format_name, sources=(base,))
    return load_packed(module, operation, recipe, ir.Type.parse(f"tensor<{num_bytes}xi8>"))


def _replace(
    operation: ir.Operation,
    op_name: str,
    operands: list[ir.Value | None],
    attrs: dict[str, AttrValue],
) -> None:
    with ir.InsertionPoint(operation):
        made = create_llm_op(get_op(op_name), operands, attrs)
    made.attributes["llm.provider"] = operation.attributes["llm.provider"]
    if text := text_attribute(operation, "llm.refused"):
        made.attributes["llm.refused"] = ir.StringAttr.get(text)
    operation.results[0].replace_all_uses_with(made.results[0])
    operation.erase()
