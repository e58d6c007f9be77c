"""How evenly the C matmuls split their work over the workers."""

from __future__ import annotations

import pytest

from llmir.dialect_ext.base import Call
from llmir.dialect_ext.c_kernels import Plan
from llmir.dialect_ext.c_matmul import matmul_plan
from llmir.dialect_ext.registry import get_op
from llmir.dialect_ext.types import TensorType
from llmir.formats import packed

from .lowered_calls import index_values

SIZES = ("count_n", "count_m", "count_rounding", "prepared", "row_bytes", "rounded_bytes")


def plan_of(rows: int, cols: int) -> Plan:
    op = get_op("packed_matmul")
    num_bytes = packed.FORMATS["q4_0"].num_bytes(rows, cols)
    operands = {"x": TensorType((None, cols), "f32"), "weight": TensorType((num_bytes,), "i8")}
    attrs = {"format": "q4_0", "rows": rows, "activations": "int8", "gated": "", "eps": 0.0}
    types = tuple(operands.get(spec.name) for spec in op.operands)
    return matmul_plan(Call(op, types, attrs))


def sizes_of(plan: Plan, tokens: int, workers: int) -> dict[str, int]:
    return index_values(plan.shapes, SIZES, T=tokens, W=workers)


def longest(sizes: dict[str, int], tokens: int, units: int, workers: int) -> float:
    """The longest worker's share of tiles × tokens, over an even one's; each takes the next
    workgroup when it is done with one."""
    loads = [0] * workers
    count_n, count_m = sizes["count_n"], sizes["count_m"]
    for m in range(count_m):
        rows = tokens * (m + 1) // count_m - tokens * m // count_m
        for n in range(count_n):
            tiles = units * (n + 1) // count_n - units * n // count_n
            loads[loads.index(min(loads))] += rows * tiles
    assert sum(loads) == tokens * units
    return max(loads) * workers / sum(loads)


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 6, 8, 16])
@pytest.mark.parametrize("tokens", [1, 2, 5, 32, 128, 129, 300, 512, 600])
def test_every_worker_has_as_much_to_do(workers: int, tokens: int) -> None:
    for rows in (576, 1536, 3072, 49152):
        units = rows // packed.TILE_ROWS
        sizes = sizes_of(plan_of(rows, 576), tokens, workers)
        # A tile cannot be split, nor can rows of a tile between workers when tokens are few.
        tile = workers / units
        assert longest(sizes, tokens, units, workers) <= 1.05 + tile, (rows, sizes)


def test_a_matrix_of_few_tiles_is_split_by_tokens() -> None:
    sizes = sizes_of(plan_of(64, 64), 128, 16)
    assert sizes["count_n"] * sizes["count_m"] == 16
    assert longest(sizes, 128, 4, 16) == 1


def rounded_by(tokens: int, workers: int) -> int:
    """How many workgroups round each of the tokens; 0: a kernel did before."""
    sizes = sizes_of(plan_of(576, 576), tokens, workers)
    if not sizes["prepared"]:
        assert sizes["count_rounding"] == 1
        return sizes["count_n"]
    assert sizes["count_rounding"] == -(-tokens // 8)
    assert sizes["rounded_bytes"] == (tokens + 16) * sizes["row_bytes"]
    return 0


def test_no_more_than_two_workgroups_round_the_same_tokens() -> None:
    assert rounded_by(512, 2) == rounded_by(512, 4) == 1
    assert rounded_by(32, 2) == rounded_by(300, 2) == rounded_by(512, 8) == 2
    assert rounded_by(512, 3) == rounded_by(32, 4) == rounded_by(5, 64) == 0
    # Of a few tokens it takes less time than waiting for another kernel.
    assert rounded_by(1, 2) == rounded_by(16, 2) == 4
    assert rounded_by(4, 16) == 16
