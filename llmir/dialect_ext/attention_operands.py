"""What every kernel provider of llm.paged_attention says alike of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llmir.dialect_ext.base import Call
from llmir.dialect_ext.types import TensorType


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionOperands:
    """tensors, dims and sizes of a plan, with their meanings there.

    T tokens, N pages, S sequences, P pages that a sequence may have.  `parts` are the results of
    the chunks of a context that is split, float32 [num_parts], which the plan's shapes compute.
    """

    tensors: Mapping[str, TensorType]
    dims: Mapping[str, tuple[str, ...]]
    sizes: Mapping[str, tuple[str, int]]


def attention_operands(call: Call) -> AttentionOperands:
    """Of a call of llm.paged_attention, sinks among them where it has any."""
    q, kv, sinks = call.type_of("q"), call.type_of("kv"), call.operand("sinks")
    index, rows = TensorType((None,), "i32"), TensorType((None, *q.shape[1:]), "f32")
    return AttentionOperands(
        tensors={
            "q": rows,
            "kv": TensorType((None, *kv.shape[1:]), kv.dtype),
            "page_table": TensorType((None, None), "i32"),
            "token_seq": index,
            "positions": index,
            **({} if sinks is None else {"sinks": sinks}),
            "parts": TensorType((None,), "f32"),
            "y": rows,
        },
        dims={
            **dict.fromkeys(("q", "token_seq", "positions", "y"), ("T",)),
            "kv": ("N",),
            "page_table": ("S", "P"),
            "parts": ("num_parts",),
        },
        sizes={"T": ("q", 0), "N": ("kv", 0), "S": ("page_table", 0), "P": ("page_table", 1)},
    )
