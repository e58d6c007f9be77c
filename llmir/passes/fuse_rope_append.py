"""fuse-rope-append: from the projections of q, k and v to the pages, in two ops.

    q = rope(matmul_q(x)), k = rope(matmul_k(x)), append_kv(kv, k, matmul_v(x), slots)
    →  qkv = matmul_qkv(x);  q, kv' = rope_append(qkv, positions, table, slots, kv)

with an rms_norm before either rope where the model has one.  The three weights become one
parameter, one below the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from iree.compiler import ir

from llmir.dialect_ext.packed_matmul import PACKERS
from llmir.dialect_ext.registry import get_op
from llmir.passes.base import Pass
from llmir.passes.fuse_matmul import concatenated
from llmir.passes.ir import (
    Matched,
    create_like,
    create_llm_op,
    erase_dead,
    llm_ops,
    text_attribute,
    through_reshapes,
)
from llmir.passes.parameters import PackedParameter, load_packed, parameter_name


@dataclass(frozen=True, slots=True)
class FuseRopeAppend(Pass):
    """Needs fuse-matmul before it, and dce-llm after it."""

    name: ClassVar[str] = "fuse-rope-append"

    def run(self, module: ir.Module) -> None:
        with module.context, ir.Location.unknown():
            for operation in llm_ops(module):
                is_append = operation.name == "llm.append_kv"
                if is_append and text_attribute(operation, "llm.provider") in PACKERS:
                    _fuse(module, operation)


@dataclass(frozen=True, slots=True)
class _Turned:
    """rope(norm(matmul)): what makes the heads of q or of k."""

    rope: Matched
    norm: Matched | None
    matmul: Matched

    @classmethod
    def of(cls, rope: Matched) -> _Turned | None:
        source = through_reshapes(rope.values["x"])
        norm = Matched.of_value(source, "rms_norm")
        if norm is not None:
            source = through_reshapes(norm.values["x"])
        matmul = Matched.of_value(source, "packed_matmul")
        return None if matmul is None else cls(rope, norm, matmul)

    def same_place(self, other: _Turned) -> bool:
        """Whether both turn heads of the same tokens."""
        mine, others = self.rope.values, other.rope.values
        return all(mine[n] == others[n] for n in ("positions", "table"))


def _fuse(module: ir.Module, operation: ir.Operation) -> None:
    append = Matched.of(operation)
    rope_k = Matched.of_value(append.values["k"], "rope")
    k = None if rope_k is None else _Turned.of(rope_k)
    v = Matched.of_value(through_reshapes(append.values["v"]), "packed_matmul")
    q = None if k is None else _query_beside(k)
    if k is None or v is None or q is None:
        return
    matmuls = [q.matmul, k.matmul, v]
    if not all(_can_join(m, v) for m in matmuls):
        return
    if q.norm and k.norm and q.norm.attrs != k.norm.attrs:
        return
    first = matmuls[0].operation
    for other in matmuls[1:]:
        if other.operation.is_before_in_block(first):
            first = other.operation
    weight = concatenated(module, first, matmuls)
    bias = _biases(module, first, matmuls)
    if weight is None:
        return
    rows = sum(int(m.attrs["rows"]) for m in matmuls)
    joined = create_like(
        v,
        {**v.values, "weight": weight, "bias": bias},
        {**v.attrs, "rows": rows},
        at=operation,
        replace=False,
    )
    norm = q.norm or k.norm
    with ir.InsertionPoint(operation):
        made = create_llm_op(
            get_op("rope_append"),
            [
                joined.results[0],
                k.rope.values["positions"],
                k.rope.values["table"],
                append.values["slots"],
                append.values["kv"],
                q.norm.values["weight"] if q.norm else None,
                k.norm.values["weight"] if k.norm else None,
            ],
            {"eps": norm.attrs["eps"] if norm else 0.0},
        )
    made.attributes["llm.provider"] = append.operation.attributes["llm.provider"]
    q.rope.operation.results[0].replace_all_uses_with(made.results[0])
    operation.results[0].replace_all_uses_with(made.results[1])
    left = [append.values["k"], append.values["v"], q.rope.operation.results[0]]
    operation.erase()
    for value in left:
        erase_dead(value)


def _query_beside(k: _Turned) -> _Turned | None:
    """The rope of the queries: the other one whose matmul has the input of k's."""
    x = k.matmul.values["x"]
    assert x is not None
    for use in x.owner.results[0].uses if not isinstance(x, ir.BlockArgument) else x.uses:
        matmul = use.owner.operation
        if matmul.name != "llm.packed_matmul" or matmul == k.matmul.operation:
            continue
        for rope in _ropes_of(matmul.results[0]):
            found = _Turned.of(Matched.of(rope))
            if found is not None and found.same_place(k) and found.matmul.operation == matmul:
                return found
    return None


def _ropes_of(value: ir.Value) -> list[ir.Operation]:
    """The ropes that read `value`, reshapes and a norm in between."""
    found: list[ir.Operation] = []
    for use in value.uses:
        user = use.owner.operation
        if user.name == "llm.rope":
            found.append(user)
        elif user.name in ("tensor.expand_shape", "tensor.collapse_shape", "llm.rms_norm"):
            found += _ropes_of(user.results[0])
    return found


def _can_join(matmul: Matched, other: Matched) -> bool:
    keys = ("format", "activations", "gated", "eps")
    return (
        all(matmul.attrs[key] == other.attrs[key] for key in keys)
        and all(matmul.values[n] == other.values[n] for n in ("x", "norm", "residual"))
        and (matmul.values["bias"] is None) == (other.values["bias"] is None)
        and not matmul.attrs["gated"]
        and int(matmul.attrs["rows"]) % 16 == 0
    )


def _biases(module: ir.Module, at: ir.Operation, matmuls: list[Matched]) -> ir.Value | None:
    """The biases one after the other, as one parameter; None where there are none."""
    values = [m.values["bias"] for m in matmuls]
    if values[0] is None:
        return None
    names = [parameter_name(v) for v in values if v is not None]
    sources = tuple(n for n in names if n is not None)
    assert len(sources) == len(values), "a bias is a parameter"
    recipe = PackedParameter(name="+".join(sources), format="", sources=sources)
    rows = sum(int(m.attrs["rows"]) for m in matmuls)
    return load_packed(module, at, recipe, ir.Type.parse(f"tensor<{rows}xf32>"))
