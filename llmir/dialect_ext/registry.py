"""The ops and the lowerings there are, and which lowering an op gets.

llmir's own ops are the modules listed in `_OWN_OPS`, imported when first asked
for.  A third-party package adds its own through the entry points `llmir.ops`
(an Op class) and `llmir.providers` (a function that returns (op name, Lowering)
pairs); nothing here needs an edit.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata

from llmir.dialect_ext.base import Call, Lowering, Op
from llmir.errors import CompileError, OptionError, UnknownNameError
from llmir.targets import Target

_OWN_OPS = (
    "add:Add",
    "append_kv:AppendKv",
    "argmax:Argmax",
    "embedding:Embedding",
    "embedding:QuantizedEmbedding",
    "gated_mul:GeluMul",
    "gated_mul:SiluMul",
    "linear:Linear",
    "packed_matmul:PackedArgmax",
    "packed_matmul:PackedEmbedding",
    "packed_matmul:PackedMatmul",
    "packed_matmul:PackedTopk",
    "paged_attention:PagedAttention",
    "quantized_matmul:QuantizedMatmul",
    "rms_norm:RmsNorm",
    "rope:Rope",
    "rope_append:RopeAppend",
    "topk:Topk",
)


def register_op(op: Op) -> Op:
    """Add an op.  Raises OptionError if its name is taken.  Returns `op`."""
    lowerings = _lowerings()
    _add_op(_ops(), op)
    lowerings[op.name] = list(op.lowerings)
    return op


def register_lowering(op_name: str, lowering: Lowering) -> Lowering:
    """Add a lowering for an op; it is tried before those already there.  Returns it."""
    _add_lowering(_lowerings(), op_name, lowering)
    return lowering


def get_op(name: str) -> Op:
    """The op of that name.  Raises UnknownNameError listing the names."""
    ops = _ops()
    if name not in ops:
        raise UnknownNameError("op", name, ops)
    return ops[name]


def op_names() -> tuple[str, ...]:
    """The names of all ops, sorted."""
    return tuple(sorted(_ops()))


def provider_names() -> tuple[str, ...]:
    """The names of all providers of any op, sorted."""
    found = {x.provider for xs in _lowerings().values() for x in xs}
    return tuple(sorted(found))


def lowerings_of(op_name: str) -> tuple[Lowering, ...]:
    """The lowerings of an op in the order in which they are tried by default."""
    get_op(op_name)
    return tuple(_lowerings()[op_name])


def find_lowering(op_name: str, provider: str, variant: str) -> Lowering:
    """The lowering of an op that a choice named.  Raises CompileError if it is gone."""
    for lowering in lowerings_of(op_name):
        if (lowering.provider, lowering.variant) == (provider, variant):
            return lowering
    raise CompileError(f"llm.{op_name} has no lowering {provider}/{variant}")


@dataclass(frozen=True, slots=True)
class Choice:
    """Which lowering a call got, and why not those before it."""

    lowering: Lowering
    refused: tuple[str, ...] = ()


def choose(
    call: Call,
    target: Target,
    priority: Mapping[str, Sequence[str]],
    *,
    pages: str | None = None,
) -> Choice:
    """The first lowering that supports the call on the target.

    Args:
        priority: op name → provider names, tried in that order and no others.
        pages: the order of elements in KV pages, where another op of the model needs it.
    Raises: CompileError with every provider's reason if none does.
    """
    candidates = lowerings_of(call.op.name)
    if call.op.name in priority:
        order = priority[call.op.name]
        candidates = tuple(x for p in order for x in candidates if x.provider == p)
    else:
        candidates = tuple(x for x in candidates if not x.kinds or target.kind in x.kinds)
    refused: list[str] = []
    for lowering in candidates:
        reason = lowering.supports(call, target)
        if reason is None and pages is not None and lowering.pages != pages:
            reason = "another op of the model cannot read its pages"
        if reason is None:
            return Choice(lowering, tuple(refused))
        refused.append(f"{_label(lowering)}: {reason}")
    types = ", ".join(str(t) for _, t in call.present)
    raise CompileError(
        f"no provider lowers llm.{call.op.name}({types}) for {target.name}: "
        + ("; ".join(refused) or "none was allowed by the op priority")
    )


def parse_priority(items: Iterable[str] | Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Check an op priority, given as a mapping or as `op=provider,provider` strings.

    Raises UnknownNameError for an op or provider that is not there.
    """
    if isinstance(items, Mapping):
        pairs = [(op, list(names)) for op, names in items.items()]
    else:
        pairs = []
        for item in items:
            op, sep, text = item.partition("=")
            if not sep or not text:
                raise OptionError(f"op priority must look like op=provider,…; got {item!r}")
            pairs.append((op.strip(), [n.strip() for n in text.split(",")]))
    result = {}
    for op, names in pairs:
        providers = {x.provider for x in lowerings_of(op)}
        for name in names:
            if name not in providers:
                raise UnknownNameError(f"provider of llm.{op}", name, providers)
        result[op] = names
    return result


@functools.cache
def _ops() -> dict[str, Op]:
    ops: dict[str, Op] = {}
    for entry_point in _OWN_OPS:
        module, cls = entry_point.split(":")
        _add_op(ops, getattr(import_module(f"llmir.dialect_ext.{module}"), cls)())
    for entry in metadata.entry_points(group="llmir.ops"):
        _add_op(ops, entry.load()())
    return ops


@functools.cache
def _lowerings() -> dict[str, list[Lowering]]:
    # After the ops are there: a provider may look at the ops it lowers.
    lowerings = {name: list(op.lowerings) for name, op in _ops().items()}
    for entry in metadata.entry_points(group="llmir.providers"):
        for op_name, lowering in entry.load()():
            _add_lowering(lowerings, op_name, lowering)
    return lowerings


def _add_op(ops: dict[str, Op], op: Op) -> None:
    if op.name in ops:
        raise OptionError(f"an op named {op.name!r} is registered already")
    ops[op.name] = op


def _add_lowering(lowerings: dict[str, list[Lowering]], op_name: str, lowering: Lowering) -> None:
    if op_name not in lowerings:
        raise UnknownNameError("op", op_name, lowerings)
    label = _label(lowering)
    if label in map(_label, lowerings[op_name]):
        raise OptionError(f"llm.{op_name} has a lowering {label} already")
    lowerings[op_name].insert(0, lowering)


def _label(lowering: Lowering) -> str:
    return f"{lowering.provider}/{lowering.variant}".rstrip("/")
