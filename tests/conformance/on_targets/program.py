"""Modules of many ops: every draw through every lowering that takes it, compiled for a target.

    @f<i>(operands…, storage of results…) → results      a lowering of a draw's call

Results are written into storage that the caller gives, so that he can poison it; but for pages,
which a lowering writes in place.  Calls that are lowered to the same text share a function, and
a target is one call of iree-compile, unless that fails: then the functions are compiled in
halves, and halves of these, until those that fail are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llmir.compiler import iree_compile
from llmir.dialect_ext.base import Call, Lowering
from llmir.dialect_ext.registry import lowerings_of
from llmir.errors import CompileError
from llmir.targets import Target

from .draw import Draw
from .draws import all_draws


@dataclass(frozen=True, kw_only=True)
class Use:
    """A draw through one lowering on a target.

    draw:     its index in all_draws()
    refused:  why the lowering does not take it; "" if it does
    """

    draw: int
    lowering: Lowering = field(repr=False)
    refused: str = ""

    @property
    def provider(self) -> str:
        return f"{self.lowering.provider}/{self.lowering.variant}".rstrip("/")


@dataclass(frozen=True, kw_only=True)
class Function:
    """One function of a module, and who uses it."""

    name: str
    text: str = field(repr=False)
    flags: tuple[str, ...]
    uses: list[Use] = field(default_factory=list, repr=False)


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """A module's functions, or one function that does not compile and why."""

    functions: Sequence[Function]
    path: Path | None = None
    error: str = ""


def uses_on(target: Target, ops: Sequence[str] = ()) -> list[Use]:
    """Every draw × lowering of its op, as the registry has them; of some ops, or of all.

    Lowerings that a pass rewrites to another op before they emit anything are left out.
    """
    found = []
    for index, draw in enumerate(all_draws()):
        if ops and draw.op not in ops:
            continue
        call = draw.call
        for lowering in lowerings_of(draw.op):
            if not lowering.rewritten_by:
                refused = lowering.supports(call, target) or ""
                found.append(Use(draw=index, lowering=lowering, refused=refused))
    return found


def functions_of(uses: Sequence[Use], target: Target) -> list[Function]:
    """The functions that the uses which are not refused need."""
    by_text: dict[str, Function] = {}
    for use in uses:
        if use.refused:
            continue
        draw = all_draws()[use.draw]
        text = _module_text(draw, use.lowering, "f")
        if text not in by_text:
            name = f"f{len(by_text)}"
            by_text[text] = Function(
                name=name,
                text=_module_text(draw, use.lowering, name),
                flags=use.lowering.flags(target),
            )
        by_text[text].uses.append(use)
    return list(by_text.values())


def compile_functions(
    functions: Sequence[Function], target: Target, directory: Path
) -> list[Compiled]:
    """All functions in as few modules as it takes to know those that fail."""
    if not functions:
        return []
    flags = tuple(
        dict.fromkeys(f for x in (target.flags, *(f.flags for f in functions)) for f in x)
    )
    path = directory / f"{target.slug}-{functions[0].name}-{len(functions)}.vmfb"
    text = "module @conformance {\n" + "\n".join(f.text for f in functions) + "\n}\n"
    try:
        iree_compile.to_module(iree_compile.to_stream(text, flags), flags, path)
    except CompileError as error:
        if len(functions) == 1:
            return [Compiled(functions=functions, error=str(error))]
        half = len(functions) // 2
        return [
            *compile_functions(functions[:half], target, directory),
            *compile_functions(functions[half:], target, directory),
        ]
    return [Compiled(functions=functions, path=path)]


def has_storage(call: Call) -> list[bool]:
    """Of each result, whether the caller gives its storage: not of pages, written in place."""
    kv = call.operand("kv") if any(o.name == "kv" for o in call.op.operands) else None
    return [t != kv for t in call.results]


def _module_text(draw: Draw, lowering: Lowering, name: str) -> str:
    call = draw.call
    symbol = f"{name}_op"
    storage = [i for i, there in enumerate(has_storage(call)) if there]
    arguments = [f"%{operand}: {t}" for operand, t in call.present]
    arguments += [f"%out{i}: {call.results[i]} {{iree.abi.output = {i} : index}}" for i in storage]
    results = ", ".join(map(str, call.results))
    made = ", ".join(f"%y{i}" for i in range(len(call.results)))
    operands = ", ".join(f"%{operand}" for operand, _ in call.present)
    types = ", ".join(str(t) for _, t in call.present)
    return f"""
{lowering.emit(call, symbol)}
func.func @{name}({", ".join(arguments)}) -> ({results}) {{
  {made} = func.call @{symbol}({operands}) : ({types}) -> ({results})
  return {made} : {results}
}}"""
