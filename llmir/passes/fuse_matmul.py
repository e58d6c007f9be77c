"""fuse-matmul: what stands around a packed matmul becomes part of it.

    packed_matmul(rms_norm(x, w))                  →  packed_matmul(x, norm = w)
    silu_mul(packed_matmul(x), packed_matmul(x))   →  packed_matmul(x) {gated}; so gelu_mul
    add(r, packed_matmul(x))                       →  packed_matmul(x, residual = r)
    argmax(packed_matmul(x))                       →  packed_argmax(x); so topk

The kernel then reads x once and writes y once.  Results differ by rounding at most.  An
rms_norm that several matmuls take in is computed by each of them.  An op that somebody else's
provider computes stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from iree.compiler import ir

from llmir.dialect_ext.gated_mul import GatedMul
from llmir.dialect_ext.packed_matmul import PACKERS
from llmir.dialect_ext.registry import get_op, lowerings_of
from llmir.passes.base import Pass
from llmir.passes.ir import (
    Matched,
    call_of,
    create_like,
    create_llm_op,
    has_one_use,
    llm_ops,
    operands_of,
    text_attribute,
)
from llmir.passes.parameters import PackedParameter, load_packed, packed_parameter


@dataclass(frozen=True, slots=True)
class FuseMatmul(Pass):
    """Needs pack-weights before it, and dce-llm after it."""

    name: ClassVar[str] = "fuse-matmul"

    def run(self, module: ir.Module) -> None:
        with module.context, ir.Location.unknown():
            for fuse in (_take_norm, _pair_for_gate, _take_residual, _choose_best):
                for operation in llm_ops(module):
                    fuse(module, operation)


def _is_ours(operation: ir.Operation) -> bool:
    """Whether no third party's lowering was chosen for an op."""
    return text_attribute(operation, "llm.provider") in (None, "", "portable", *PACKERS)


def _take_norm(module: ir.Module, operation: ir.Operation) -> None:
    if operation.name != "llm.packed_matmul":
        return
    matmul = Matched.of(operation)
    norm = Matched.of_value(matmul.values["x"], "rms_norm")
    if norm is None or matmul.values["norm"] is not None or not _is_ours(norm.operation):
        return
    values = {**matmul.values, "x": norm.values["x"], "norm": norm.values["weight"]}
    create_like(matmul, values, {**matmul.attrs, "eps": norm.attrs["eps"]})


def _pair_for_gate(module: ir.Module, operation: ir.Operation) -> None:
    op = get_op(operation.name.removeprefix("llm."))
    if not isinstance(op, GatedMul) or not _is_ours(operation):
        return
    values = operands_of(operation)
    gate, up = (Matched.of_value(values[name], "packed_matmul") for name in ("gate", "up"))
    if gate is None or up is None or gate.operation == up.operation:
        return
    if not (has_one_use(values["gate"]) and has_one_use(values["up"])):
        return
    if gate.attrs != up.attrs or any(gate.values[n] != up.values[n] for n in ("x", "norm")):
        return
    if any(m.values[n] is not None for m in (gate, up) for n in ("bias", "residual")):
        return
    recipes = [packed_parameter(m.values["weight"]) for m in (gate, up)]
    if None in recipes or int(gate.attrs["rows"]) % 16:
        return
    weight = _together(module, operation, [r for r in recipes if r], [gate, up], in_turn=True)
    made = create_like(
        gate,
        {**gate.values, "weight": weight},
        {**gate.attrs, "gated": op.activation},
        at=operation,
        replace=False,
    )
    operation.results[0].replace_all_uses_with(made.results[0])
    operation.erase()
    for matmul in (gate, up):
        matmul.operation.erase()


def _take_residual(module: ir.Module, operation: ir.Operation) -> None:
    if operation.name != "llm.add" or not _is_ours(operation):
        return
    values = operands_of(operation)
    for name, other in (("a", "b"), ("b", "a")):
        matmul = Matched.of_value(values[name], "packed_matmul")
        if matmul is None or not has_one_use(values[name]) or matmul.attrs["gated"]:
            continue
        if matmul.values["residual"] is not None:
            continue
        made = create_like(
            matmul,
            {**matmul.values, "residual": values[other]},
            matmul.attrs,
            at=operation,
            replace=False,
        )
        operation.results[0].replace_all_uses_with(made.results[0])
        operation.erase()
        matmul.operation.erase()
        return


def _choose_best(module: ir.Module, operation: ir.Operation) -> None:
    name = operation.name.removeprefix("llm.")
    if name not in ("argmax", "topk") or not _is_ours(operation):
        return
    logits = operands_of(operation)["x"]
    matmul = Matched.of_value(logits, "packed_matmul")
    if matmul is None or not has_one_use(logits):
        return
    if matmul.attrs["gated"] or matmul.values["residual"] is not None:
        return
    op = get_op(f"packed_{name}")
    provider = text_attribute(matmul.operation, "llm.provider")
    if not any(x.provider == provider for x in lowerings_of(op.name)):
        return
    attrs = {**matmul.attrs, **call_of(operation).attrs}
    with ir.InsertionPoint(operation):
        made = create_llm_op(
            op,
            [matmul.values[o.name] for o in op.operands],
            {a.name: attrs[a.name] for a in op.attributes},
        )
    made.attributes["llm.provider"] = matmul.operation.attributes["llm.provider"]
    for old, new in zip(operation.results, made.results, strict=True):
        old.replace_all_uses_with(new)
    operation.erase()
    matmul.operation.erase()


def _together(
    module: ir.Module,
    at: ir.Operation,
    recipes: list[PackedParameter],
    matmuls: list[Matched],
    *,
    in_turn: bool,
) -> ir.Value:
    """One packed parameter of several, whose tiles take turns or stand one below the other."""
    names = [r.name.removesuffix(".packed") for r in recipes]
    sizes = [call_of(m.operation).type_of("weight").shape[0] for m in matmuls]
    recipe = PackedParameter(
        name="+".join(names) + ".packed",
        format=recipes[0].format,
        sources=tuple(source for r in recipes for source in r.sources),
        in_turn=in_turn,
    )
    return load_packed(module, at, recipe, ir.Type.parse(f"tensor<{sum(sizes)}xi8>"))


def concatenated(module: ir.Module, at: ir.Operation, matmuls: list[Matched]) -> ir.Value | None:
    """The weights of packed matmuls of one format, one below the other; None if not possible."""
    recipes = [packed_parameter(m.values["weight"]) for m in matmuls]
    if None in recipes or any(r.in_turn for r in recipes if r):
        return None
    return _together(module, at, [r for r in recipes if r], matmuls, in_turn=False)
