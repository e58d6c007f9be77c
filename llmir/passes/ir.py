"""Reading and writing llm ops in an MLIR module.

An llm op is an operation of the unregistered dialect `llm`; MLIR neither
verifies, removes nor merges it, so the passes here do.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType

from iree.compiler import ir, passmanager

from llmir.dialect_ext.base import Attribute, AttrValue, Call, Op
from llmir.dialect_ext.registry import get_op
from llmir.dialect_ext.types import TensorType
from llmir.errors import CompileError, VerifyError

_SEGMENTS = "operandSegmentSizes"


def _stop_searching(dialects: Sequence[str]) -> None:
    """Give dialects that have no Python module an empty one.

    MLIR asks a dialect's module for the class of an operation each time that it hands one to
    Python.  Where there is no module it would search for it on the disk, each time again.
    """
    for dialect in dialects:
        name = f"iree.compiler.dialects.{dialect}"
        if find_spec(name) is None:
            sys.modules[name] = ModuleType(name)


_stop_searching(("llm", "torch", "torch_c"))


def parse_module(text: str, context: ir.Context | None = None) -> ir.Module:
    """Parse MLIR text that may hold llm ops.

    Raises CompileError with MLIR's own diagnostics if it is not valid.
    """
    context = context or ir.Context()
    context.allow_unregistered_dialects = True
    try:
        return ir.Module.parse(text, context)
    except ir.MLIRError as error:
        raise CompileError(f"not valid MLIR: {error}") from error


def walk(operation: ir.Operation) -> Iterator[ir.Operation]:
    """Every operation below `operation`, parents first, in program order.

    Children are listed before they are visited: an operation may be erased once
    it has been yielded.
    """
    for region in operation.regions:
        for block in region:
            for child in list(block):
                yield child.operation
                yield from walk(child.operation)


CHAIN, YIELD = "llm.chain", "llm.yield"
"""What holds ops and is none itself: see chain-kernels."""


def is_llm_op(operation: ir.Operation) -> bool:
    """Whether an operation is one of the ops of dialect_ext."""
    return operation.name.startswith("llm.") and operation.name not in (CHAIN, YIELD)


def llm_ops(module: ir.Module) -> list[ir.Operation]:
    """Every llm op of a module, in program order; those in chains too."""
    return [op for op in walk(module.operation) if is_llm_op(op)]


def attributes_key(operation: ir.Operation) -> tuple[tuple[str, str], ...]:
    """An operation's attributes as something that can be hashed and compared."""
    found = (operation.attributes[i] for i in range(len(operation.attributes)))
    return tuple(sorted((a.name, str(a.attr)) for a in found))


def text_attribute(operation: ir.Operation, name: str) -> str:
    """The text of a string attribute, "" where the operation has none of that name."""
    if name not in operation.attributes:
        return ""
    return ir.StringAttr(operation.attributes[name]).value


_CALLS: dict[object, Call] = {}
"""The calls that were verified, by all that they depend on: a model has few that differ."""


def call_of(operation: ir.Operation) -> Call:
    """The verified Call that an llm op in the IR stands for.  Raises VerifyError."""
    op = get_op(operation.name.removeprefix("llm."))
    operands = tuple(str(v.type) for v in operation.operands)
    results = tuple(str(r.type) for r in operation.results)
    key = (op, attributes_key(operation), operands, results)
    if key not in _CALLS:
        _CALLS[key] = _verified(op, operation)
    return _CALLS[key]


def _verified(op: Op, operation: ir.Operation) -> Call:
    attrs = {
        a.name: _attr_value(op, a.name, a.attr)
        for a in (operation.attributes[i] for i in range(len(operation.attributes)))
        if a.name != _SEGMENTS and not a.name.startswith("llm.")
    }
    call = op.verify(_operand_types(op, operation), attrs)
    found = tuple(_tensor_type(op, "result", r.type) for r in operation.results)
    if found != call.results:
        op.fail(
            f"result must be {', '.join(map(str, call.results))}, got {', '.join(map(str, found))}"
        )
    return call


def operands_of(operation: ir.Operation) -> dict[str, ir.Value | None]:
    """The operands of a verified llm op by name; None where an optional one is absent."""
    op = get_op(operation.name.removeprefix("llm."))
    values = iter(operation.operands)
    if not op.has_optional:
        return dict(zip((o.name for o in op.operands), values, strict=True))
    sizes = ir.DenseI32ArrayAttr(operation.attributes[_SEGMENTS])
    return {
        spec.name: next(values) if present else None
        for spec, present in zip(op.operands, sizes, strict=True)
    }


def _operand_types(op: Op, operation: ir.Operation) -> list[TensorType | None]:
    found = list(operation.operands)
    if not op.has_optional:
        if len(found) != len(op.operands):
            op.fail(f"expected {len(op.operands)} operands, got {len(found)}")
        present = [True] * len(op.operands)
    else:
        if _SEGMENTS not in operation.attributes:
            op.fail(f"attribute {_SEGMENTS!r} is missing; the op has optional operands")
        sizes = list(ir.DenseI32ArrayAttr(operation.attributes[_SEGMENTS]))
        if len(sizes) != len(op.operands) or sum(sizes) != len(found):
            op.fail(f"{_SEGMENTS} {sizes} does not fit {len(found)} operands")
        present = [bool(s) for s in sizes]
    values = iter(found)
    return [
        _tensor_type(op, f"operand {spec.name!r}", next(values).type) if there else None
        for spec, there in zip(op.operands, present, strict=True)
    ]


def _tensor_type(op: Op, what: str, mlir_type: ir.Type) -> TensorType:
    parsed = TensorType.parse(str(mlir_type))
    if parsed is None:
        raise VerifyError(f"llm.{op.name}: {what} must be a ranked tensor, got {mlir_type}")
    return parsed


def _attr_value(op: Op, name: str, attribute: ir.Attribute) -> AttrValue:
    if isinstance(attribute, ir.BoolAttr):
        return bool(attribute.value)
    if isinstance(attribute, ir.IntegerAttr):
        return int(attribute.value)
    if isinstance(attribute, ir.FloatAttr):
        return float(attribute.value)
    if isinstance(attribute, ir.StringAttr):
        return str(attribute.value)
    raise VerifyError(
        f"llm.{op.name}: attribute {name!r} is {attribute}, not a number, bool or string"
    )


def create_llm_op(
    op: Op, operands: Sequence[ir.Value | None], attrs: dict[str, AttrValue]
) -> ir.Operation:
    """Build `"llm.<name>"` at the current insertion point; verifies it first."""
    types = [
        None if v is None else _tensor_type(op, f"operand {spec.name!r}", v.type)
        for spec, v in zip(op.operands, operands, strict=True)
    ]
    call = op.verify(types, attrs)
    mlir_attrs = {a.name: _mlir_attr(a, call.attrs[a.name]) for a in op.attributes}
    if op.has_optional:
        mlir_attrs[_SEGMENTS] = ir.DenseI32ArrayAttr.get([int(v is not None) for v in operands])
    return ir.Operation.create(
        f"llm.{op.name}",
        results=[ir.Type.parse(str(t)) for t in call.results],
        operands=[v for v in operands if v is not None],
        attributes=mlir_attrs,
    )


def _mlir_attr(spec: Attribute, value: AttrValue) -> ir.Attribute:
    if spec.kind is bool:
        return ir.BoolAttr.get(bool(value))
    if spec.kind is int:
        return ir.IntegerAttr.get(ir.IntegerType.get_signless(64), int(value))
    if spec.kind is str:
        return ir.StringAttr.get(str(value))
    return ir.FloatAttr.get(ir.F64Type.get(), float(value))


@dataclass(frozen=True, slots=True)
class Matched:
    """An llm op that a fusion looks at: its operands by name, and its attributes."""

    operation: ir.Operation
    values: dict[str, ir.Value | None]
    attrs: dict[str, AttrValue]

    @classmethod
    def of(cls, operation: ir.Operation) -> Matched:
        return cls(operation, operands_of(operation), dict(call_of(operation).attrs))

    @classmethod
    def of_value(cls, value: ir.Value | None, op_name: str) -> Matched | None:
        """The op that makes `value`, if it is an llm op of that name."""
        operation = None if value is None else defining_op(value)
        if operation is None or operation.name != f"llm.{op_name}":
            return None
        return cls.of(operation)


def defining_op(value: ir.Value) -> ir.Operation | None:
    """The operation that makes a value; None of a block's argument."""
    return None if isinstance(value, ir.BlockArgument) else value.owner.operation


def has_one_use(value: ir.Value | None) -> bool:
    """Whether exactly one operand of the module is `value`."""
    return value is not None and sum(1 for _ in value.uses) == 1


RESHAPES = ("tensor.expand_shape", "tensor.collapse_shape", "tensor.cast")


def through_reshapes(value: ir.Value | None) -> ir.Value | None:
    """What `value` was before it was only seen in other shapes."""
    while value is not None:
        operation = defining_op(value)
        if operation is None or operation.name not in RESHAPES:
            return value
        value = operation.operands[0]
    return value


def erase_dead(value: ir.Value | None) -> None:
    """Erase what makes `value`, if nobody uses it: reshapes and pure llm ops, and so upwards."""
    maker = None if value is None else defining_op(value)
    # Each stands here once: an operation may be reached by two ways, and is erased by one.
    waiting = [] if maker is None else [maker]
    while waiting:
        operation = waiting.pop()
        if not _is_dead(operation):
            continue
        makers = [m for m in map(defining_op, operation.operands) if m is not None]
        operation.erase()
        waiting += [m for m in dict.fromkeys(makers) if m not in waiting]


def _is_dead(operation: ir.Operation) -> bool:
    if any(True for result in operation.results for _ in result.uses):
        return False
    if operation.name.startswith("llm."):
        return call_of(operation).op.pure
    return operation.name in (*RESHAPES, "tensor.dim")


def create_like(
    matched: Matched,
    values: Mapping[str, ir.Value | None],
    attrs: Mapping[str, AttrValue],
    *,
    at: ir.Operation | None = None,
    replace: bool = True,
) -> ir.Operation:
    """An op like `matched`, its provider too, with other operands or attributes, before `at`.

    replace: put it in the place of `matched`, which is erased.
    """
    old = matched.operation
    op = get_op(old.name.removeprefix("llm."))
    with ir.InsertionPoint(at or old):
        made = create_llm_op(op, [values[o.name] for o in op.operands], dict(attrs))
    for name in ("llm.provider", "llm.variant", "llm.refused"):
        if name in old.attributes:
            made.attributes[name] = old.attributes[name]
    if replace:
        for before, after in zip(old.results, made.results, strict=True):
            before.replace_all_uses_with(after)
        old.erase()
    return made


def run_mlir_pipeline(module: ir.Module, pipeline: str) -> None:
    """Run a pipeline of MLIR's or IREE's own passes, given as text.

    Raises CompileError with the diagnostics.
    """
    with module.context:
        try:
            passmanager.PassManager.parse(pipeline).run(module.operation)
        except ir.MLIRError as error:
            raise CompileError(f"pipeline {pipeline} failed: {error}") from error
