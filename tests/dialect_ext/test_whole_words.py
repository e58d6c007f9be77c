"""Weights whose end Vulkan reads as 0 are refused there: those that are not whole words.

tests/conformance runs what is not refused, on shapes of both kinds.
"""

from __future__ import annotations

import pytest

from llmir.dialect_ext.registry import choose, get_op
from llmir.dialect_ext.types import TensorType
from llmir.errors import CompileError
from llmir.targets import resolve

IDS, X = TensorType((None,), "i32"), TensorType((None, 37), "f32")
QUANTS, SCALES = TensorType((7, 1, 37), "i8"), TensorType((7, 1), "f32")
BYTES = {"bits": 8, "group_size": 37, "zero_point": 0}


@pytest.mark.parametrize(
    ("op", "operands", "attrs"),
    [
        ("embedding", [IDS, TensorType((33, 37), "bf16")], {}),
        ("linear", [X, TensorType((7, 37), "bf16"), None], {}),
        ("quantized_embedding", [IDS, QUANTS, SCALES, None], BYTES),
        ("quantized_matmul", [X, QUANTS, SCALES, None, None], BYTES),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_weight_that_ends_within_a_word_is_refused(
    op: str, operands: list[TensorType | None], attrs: dict[str, int]
) -> None:
    call = get_op(op).verify(operands, attrs)
    with pytest.raises(CompileError, match=r"is not whole words .* store f32"):
        choose(call, resolve("vulkan"), {op: ["portable"]})
    assert choose(call, resolve("cuda:sm_80"), {op: ["portable"]})


def test_whole_words_and_float32_are_taken() -> None:
    for table in (TensorType((32, 37), "bf16"), TensorType((33, 37), "f32")):
        call = get_op("embedding").verify([IDS, table], {})
        assert choose(call, resolve("vulkan"), {"embedding": ["portable"]})
