"""What one call of an llm op cannot avoid: bytes through memory, and arithmetic.

Symbols as in costs.py; R rows of the call's activations.

    memory bytes      parameters in whole, but of a table R rows; KV of the positions that the
                      step's tokens see where they are read, of its own tokens where written
    activation bytes  operands and results that the ops beside it write and read: they stay in
                      the caches
    operations        2 per element of a weight matrix and row; of attention, 4 · num_heads ·
                      head_dim per token and position seen; of other ops, which compute little
                      beside what they read, none
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmir.artifact import CallOperand, StepCall
from llmir.bench.costs import Span, positions_read, positions_seen

_ELEMENT_BYTES = {"f32": 4, "f16": 2, "bf16": 2, "i32": 4, "i8": 1}
_TABLES = {"embedding", "quantized_embedding", "packed_embedding", "rope", "rope_append"}
_ATTENTION = "paged_attention"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallCosts:
    """Of one call; see the module's docstring."""

    memory_bytes: int
    activation_bytes: int
    operations: int


def call_costs(call: StepCall, sizes: Mapping[str, int], spans: Sequence[Span]) -> CallCosts:
    """The costs of a call in a step of these spans; sizes: of T and L."""
    operands = {o.name: o for o in call.operands}
    rows = _rows(call, sizes)
    memory = activations = 0
    for operand in call.operands:
        if operand.name == "kv":
            memory += _kv_positions(call, spans) * _kv_token_bytes(operand)
        elif operand.kind == "parameter" and call.op in _TABLES and _is_table(operand):
            memory += rows * _num_bytes(operand, sizes) // _table_rows(call, operand)
        elif operand.kind == "parameter":
            memory += _num_bytes(operand, sizes)
        elif operand.name == "table":  # logit rows: L of the T rows
            activations += rows * int(operand.dims[1]) * _ELEMENT_BYTES[operand.dtype]
        elif operand.kind == "activations":
            activations += _num_bytes(operand, sizes)
    activations += 4 * rows * _result_columns(call, operands)
    return CallCosts(
        memory_bytes=memory,
        activation_bytes=activations,
        operations=_operations(call, operands, rows, spans),
    )


def size_of(dim: str, sizes: Mapping[str, int]) -> int:
    """A dim of an operand in numbers: "64", "T", "T*9"."""
    symbol, _, times = dim.partition("*")
    return (int(symbol) if symbol.isdigit() else sizes[symbol]) * int(times or 1)


def matrix_elements(call: StepCall) -> int:
    """Elements of the weight matrix of a matmul; 0 of other ops."""
    dims = {o.name: o.dims for o in call.operands}
    if call.op in ("packed_matmul", "packed_argmax"):
        matrices = 2 if call.attrs.get("gated") else 1
        return matrices * int(call.attrs["rows"]) * int(dims["x"][1])
    if call.op == "linear":
        return math.prod(map(int, dims["weight"]))
    if call.op == "quantized_matmul":
        return math.prod(map(int, dims["quants"][:2])) * int(call.attrs["group_size"])
    return 0


def _rows(call: StepCall, sizes: Mapping[str, int]) -> int:
    """Of the first operand that has a size of the step's."""
    dims = (o.dims[0] for o in call.operands if o.kind != "parameter")
    return next(size_of(d, sizes) for d in dims if d.partition("*")[0] in sizes)


def _operations(
    call: StepCall, operands: Mapping[str, CallOperand], rows: int, spans: Sequence[Span]
) -> int:
    if call.op == _ATTENTION:
        seen = sum(positions_seen(s, _window(call)) for s in spans)
        return 4 * int(operands["q"].dims[1]) * int(operands["q"].dims[2]) * seen
    return 2 * matrix_elements(call) * rows


def _result_columns(call: StepCall, operands: Mapping[str, CallOperand]) -> int:
    """float32 numbers of a row that the op writes for the next op."""
    if call.op in ("packed_matmul", "packed_embedding"):
        return int(call.attrs["rows" if call.op == "packed_matmul" else "cols"])
    if call.op in ("packed_argmax", "argmax"):
        return 1
    if call.op == "linear":
        return int(operands["weight"].dims[0])
    if call.op == "quantized_matmul":
        return int(operands["quants"].dims[0])
    if call.op == "append_kv":
        return 0
    if call.op == "rope_append":
        pages, columns = operands["kv"].dims, int(operands["qkv"].dims[1])
        return columns - 2 * int(pages[2]) * int(pages[4])
    if call.op == "embedding":
        return int(operands["table"].dims[1])
    if call.op == "quantized_embedding":
        return int(operands["quants"].dims[1]) * int(call.attrs["group_size"])
    # The others' results are like their first activations.
    first = next(o for o in call.operands if o.kind == "activations")
    return math.prod(int(d) for d in first.dims[1:])


def _num_bytes(operand: CallOperand, sizes: Mapping[str, int]) -> int:
    elements = math.prod(size_of(d, sizes) for d in operand.dims)
    return elements * _ELEMENT_BYTES[operand.dtype]


def _is_table(operand: CallOperand) -> bool:
    return operand.name in ("table", "quants", "scales", "mins")


def _table_rows(call: StepCall, operand: CallOperand) -> int:
    return int(call.attrs["rows"]) if call.op == "packed_embedding" else int(operand.dims[0])


def _window(call: StepCall) -> int | None:
    return int(call.attrs["window"]) or None


def _kv_positions(call: StepCall, spans: Sequence[Span]) -> int:
    if call.op == _ATTENTION:
        return sum(positions_read(s, _window(call)) for s in spans)
    return sum(s.length for s in spans)


def _kv_token_bytes(pages: CallOperand) -> int:
    """K and V of one token in one layer."""
    return 2 * int(pages.dims[2]) * int(pages.dims[4]) * _ELEMENT_BYTES[pages.dtype]
