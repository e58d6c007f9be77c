"""raise-torch-llm: `torch.operator "torch.llm.x"` becomes `llm.x` on builtin tensors.

It comes before torch-to-iree, which refuses torch.operator.  Constants become
attributes, `none` an absent operand; tensors cross by torch_c casts, which
torch-to-iree folds away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from iree.compiler import ir

from llmir.dialect_ext.base import AttrValue, Op
from llmir.dialect_ext.registry import get_op
from llmir.errors import CompileError
from llmir.passes.base import Pass
from llmir.passes.ir import create_llm_op, walk

_PREFIX = "torch.llm."
_DTYPES = {"si8": "i8", "ui8": "i8", "si32": "i32", "si64": "i64"}


@dataclass(frozen=True, slots=True)
class RaiseTorchLlm(Pass):
    """See the module."""

    name: ClassVar[str] = "raise-torch-llm"

    def run(self, module: ir.Module) -> None:
        with module.context, ir.Location.unknown():
            for operation in list(walk(module.operation)):
                if operation.name != "torch.operator":
                    continue
                torch_name = ir.StringAttr(operation.attributes["name"]).value
                if torch_name.startswith(_PREFIX):
                    _raise_one(operation, get_op(torch_name.removeprefix(_PREFIX)))


def _raise_one(operation: ir.Operation, op: Op) -> None:
    names = (a.name for a in op.torch_arguments)
    values = dict(zip(names, operation.operands, strict=True))
    with ir.InsertionPoint(operation):
        operands = [_to_builtin(values[o.name]) for o in op.operands]
        attrs: dict[str, AttrValue] = {}
        for spec in op.attributes:
            attrs[spec.name] = spec.kind(_constant(values[spec.name], op, spec.name))
        raised = create_llm_op(op, operands, attrs)
        for old, new in zip(operation.results, raised.results, strict=True):
            cast = ir.Operation.create(
                "torch_c.from_builtin_tensor", results=[old.type], operands=[new]
            )
            old.replace_all_uses_with(cast.results[0])
    operation.erase()


def _to_builtin(value: ir.Value) -> ir.Value | None:
    text = str(value.type)
    if text == "!torch.none":
        return None
    shape, dtype = text.removeprefix("!torch.vtensor<[").rstrip(">").split("],")
    dims = "".join(f"{d}x" for d in shape.split(",") if d)
    builtin = ir.Type.parse(f"tensor<{dims}{_DTYPES.get(dtype, dtype)}>")
    cast = ir.Operation.create("torch_c.to_builtin_tensor", results=[builtin], operands=[value])
    return cast.results[0]


def _constant(value: ir.Value, op: Op, name: str) -> AttrValue:
    owner = None if isinstance(value, ir.BlockArgument) else value.owner.operation
    if owner is None or not owner.name.startswith("torch.constant."):
        raise CompileError(f"llm.{op.name}: attribute {name!r} must be a constant, got {value}")
    attribute = owner.attributes["value"]
    if isinstance(attribute, ir.FloatAttr):
        return float(attribute.value)
    if isinstance(attribute, ir.StringAttr):
        return str(attribute.value)
    return int(ir.IntegerAttr(attribute).value)
