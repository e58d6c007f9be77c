"""Every registered op as `torch.ops.llm.<name>`: schema, eager kernel, fake kernel.

The eager kernel is the op's numpy reference, the fake kernel its shape rule.
All ops are functional (a mutating one does not survive torch.export).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from llmir.dialect_ext.base import Attribute, AttrValue, Op, Operand
from llmir.dialect_ext.registry import get_op, op_names
from llmir.dialect_ext.types import TensorType

_TO_NAME = {
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.int8: "i8",
    torch.int32: "i32",
    torch.int64: "i64",
}
TORCH_DTYPES = {name: dtype for dtype, name in _TO_NAME.items()}
_SCHEMA_KINDS = {int: "int", float: "float", bool: "bool", str: "str"}


@functools.cache
def register_all() -> torch.library.Library:
    """Define `torch.ops.llm.*`; call before a model is traced or run eagerly.

    The library object is kept by the cache: its ops live as long as it does.
    """
    library = torch.library.Library("llm", "DEF")
    for name in op_names():
        op = get_op(name)
        if not op.from_torch:
            continue
        library.define(_schema(op))
        library.impl(name, _eager(op), "CompositeExplicitAutograd")
        torch.library.register_fake(f"llm::{name}", _fake(op), lib=library)
    return library


def _schema(op: Op) -> str:
    args = [_argument(a) for a in op.torch_arguments]
    results = "Tensor" if op.num_results == 1 else f"({', '.join(['Tensor'] * op.num_results)})"
    return f"{op.name}({', '.join(args)}) -> {results}"


def _argument(spec: Operand | Attribute) -> str:
    if isinstance(spec, Operand):
        text = f"Tensor{'?' if spec.optional else ''} {spec.name}"
        return f"{text}=None" if spec.by_name else text
    text = f"{_SCHEMA_KINDS[spec.kind]} {spec.name}"
    return f"{text}={spec.default}" if spec.by_name else text


def _split(op: Op, args: tuple[Any, ...]) -> tuple[list[Any], dict[str, AttrValue]]:
    """Tensors and attributes; torch leaves out the last arguments that have their defaults."""
    specs = op.torch_arguments
    assert all(a.by_name for a in specs[len(args) :])
    found = {a.name: value for a, value in zip(specs, args, strict=False)}
    tensors = [found.get(o.name) for o in op.operands]
    attrs = {a.name: a.kind(found[a.name]) for a in op.attributes if a.name in found}
    return tensors, attrs


def _types(tensors: list[Any]) -> list[TensorType | None]:
    return [None if t is None else TensorType(tuple(t.shape), _TO_NAME[t.dtype]) for t in tensors]


def _eager(op: Op) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        tensors, attrs = _split(op, args)
        call = op.verify(_types(tensors), attrs)
        arrays = [None if t is None else _to_numpy(t) for t in tensors]
        result = np.ascontiguousarray(op.reference(*arrays, **call.attrs))
        return torch.from_numpy(result).to(TORCH_DTYPES[call.results[0].dtype])

    return run


def _to_numpy(tensor: torch.Tensor) -> Any:
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _fake(op: Op) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        tensors, attrs = _split(op, args)
        call = op.verify(_types(tensors), attrs)
        like = next(t for t in tensors if t is not None)
        (result,) = (like.new_empty(r.shape, dtype=TORCH_DTYPES[r.dtype]) for r in call.results)
        return result

    return run
