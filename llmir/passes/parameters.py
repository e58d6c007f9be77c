"""The weights of a module: `util.global`s whose value is a named parameter of the archive.

    util.global private @g {llm.packed = "…"} = #flow.parameter.named<"model"::"x.packed"> : …

A packed parameter says in `llm.packed` what it is made of; the compiler writes it into the
target's archive by that, and takes the attribute away before IREE sees the module.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from iree.compiler import ir

from llmir.errors import CompileError

_RECIPE = "llm.packed"
_PARAMETER = re.compile(r'#flow\.parameter\.named<"([^"]*)"::"([^"]*)">')


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedParameter:
    """A parameter made of others.

    format:   of formats.packed; "" for vectors, which are float32 and stay as they are
    sources:  names of the matrices, without their planes' suffix, or of the vectors
    in_turn:  whether the tiles of the sources take turns; else they are one below the other
    """

    name: str
    format: str
    sources: tuple[str, ...]
    in_turn: bool = False


def parameter_name(value: ir.Value) -> str | None:
    """The name of the parameter that `value` is loaded from; None if it is not loaded from one."""
    found = _global_of(value)
    return None if found is None else name_of(found)


def packed_parameter(value: ir.Value) -> PackedParameter | None:
    """The recipe of the packed parameter that `value` is loaded from, if it is one."""
    found = _global_of(value)
    return None if found is None else recipe_of(found)


def name_of(global_op: ir.Operation) -> str | None:
    """The name of a global's parameter."""
    if "initial_value" not in global_op.attributes:
        return None
    match = _PARAMETER.search(str(global_op.attributes["initial_value"]))
    return match[2] if match else None


def recipe_of(global_op: ir.Operation) -> PackedParameter | None:
    """The recipe of a packed parameter's global; None for other globals."""
    if _RECIPE not in global_op.attributes:
        return None
    data = json.loads(ir.StringAttr(global_op.attributes[_RECIPE]).value)
    return PackedParameter(**{**data, "sources": tuple(data["sources"])})


def globals_of(module: ir.Module) -> Iterator[ir.Operation]:
    """Every `util.global` of a module, in order."""
    found = (op.operation for op in module.body.operations)
    return (op for op in found if op.name == "util.global")


def load_packed(
    module: ir.Module, at: ir.Operation, recipe: PackedParameter, tensor_type: ir.Type
) -> ir.Value:
    """Load a packed parameter before `at`; its global is made if it is not there."""
    symbol = f"__packed.{recipe.name}"
    if symbol not in ir.SymbolTable(module.operation):
        scope = _scope(module)
        text = (
            f'util.global private @"{symbol}" = '
            f'#flow.parameter.named<"{scope}"::"{recipe.name}"> : {tensor_type}'
        )
        made = ir.Operation.parse(text, context=module.context)
        made.attributes[_RECIPE] = ir.StringAttr.get(json.dumps(dataclasses.asdict(recipe)))
        ir.InsertionPoint.at_block_begin(module.body).insert(made)
    with ir.InsertionPoint(at):
        load = ir.Operation.create(
            "util.global.load",
            results=[tensor_type],
            attributes={"global": ir.FlatSymbolRefAttr.get(symbol)},
        )
    return load.results[0]


def take_recipes(module: ir.Module) -> tuple[tuple[str, ...], tuple[PackedParameter, ...]]:
    """The parameters that a module reads as the model has them, and those that it reads packed.

    Takes the recipes out of the module.
    """
    plain, packed = [], []
    for global_op in globals_of(module):
        recipe = recipe_of(global_op)
        if recipe is not None:
            packed.append(recipe)
            del global_op.attributes[_RECIPE]
        elif (name := name_of(global_op)) is not None:
            plain.append(name)
    return tuple(sorted(plain)), tuple(sorted(packed, key=lambda p: p.name))


def _global_of(value: ir.Value) -> ir.Operation | None:
    if isinstance(value, ir.BlockArgument):
        return None
    load = value.owner.operation if hasattr(value.owner, "operation") else value.owner
    if load.name != "util.global.load":
        return None
    symbol = ir.FlatSymbolRefAttr(load.attributes["global"]).value
    top = load
    while top.parent is not None:
        top = top.parent.operation
    symbols = ir.SymbolTable(top)
    if symbol not in symbols:
        raise CompileError(f"no global @{symbol} in the module")
    return symbols[symbol].operation


def _scope(module: ir.Module) -> str:
    """The scope of the module's parameters: there is one."""
    for global_op in globals_of(module):
        if match := _PARAMETER.search(str(global_op.attributes.get("initial_value", ""))):
            return match[1]
    raise CompileError("the module has no parameters to pack")
