"""llm.topk through each of its lowerings that runs here, against numpy's sort of (value, id).

The C kernels' packed_topk is in tests/conformance, the emulated GPU kernels are in
tests/conformance/test_gpu_topk.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmir.compiler.iree_compile import to_module, to_stream
from llmir.dialect_ext.registry import lowerings_of
from llmir.dialect_ext.topk import Topk
from llmir.dialect_ext.topk_kernels import LARGEST_K, LEAST_PART, MOST_PARTS, num_parts
from llmir.dialect_ext.types import TensorType
from llmir.targets import resolve

from .lowered import Array, all_results_with_tool, module

TARGETS = {"cpu": "local-task", "vulkan": "vulkan"}
TINY = np.float32(1e-40)  # a number that some devices take for 0


def hard_rows(columns: int, *, with_tiny: bool) -> Array:
    """Rows of logits as nobody's model makes them, f32 [L, V]."""
    rng = np.random.default_rng(columns)
    x = rng.standard_normal((20, columns)).astype(np.float32) * 4
    last, middle = columns - 1, columns // 2
    x[1] = np.round(x[1])  # many are equal
    x[2] = -1.5  # all are
    x[3], x[4] = np.sort(x[3]), -np.sort(x[4])
    x[5] = -np.inf
    x[5, [0, middle, last]] = -7  # fewer than k are finite
    x[6, : columns // 3] = -np.inf
    x[7, middle] = -np.inf
    x[8] = np.where(rng.random(columns) < 0.5, np.float32(-0.0), np.float32(0.0))
    x[9] = rng.choice(np.float32([3e38, -3e38, 1e-30, -2, 0]), columns)
    # All that is large is read by fewer than 64 invocations (128) or threads (256).
    x[10] += np.where(np.arange(columns) % 128 < 63, 100, 0)
    x[11] += np.where(np.arange(columns) % 256 < 63, 100, 0)
    x[12] += np.where(np.arange(columns) // 32 % 7 == 0, 100, 0)
    if with_tiny:
        x[13] = TINY * rng.integers(-9, 9, columns).astype(np.float32)
    for row, place, number in (
        (14, 0, np.nan), (15, last, np.nan), (16, middle, np.inf), (17, last, np.inf),
        (18, middle, -np.nan),
    ):  # fmt: skip
        x[row, place] = number
    x[19] = -np.inf
    return x


BAD = [14, 15, 16, 17, 18, 19]


def check(x: Array, k: int, found: list[Array]) -> None:
    values, ids, weights = found
    for row, number in enumerate(x.astype(np.float64)):
        if row in BAD:
            assert np.isnan(values[row]).all(), row
            assert ids[row].tolist() == [-1] * k, row
            assert np.isnan(weights[row]), row
            continue
        expected = np.lexsort((np.arange(len(number)), -number))[:k]
        np.testing.assert_array_equal(ids[row], expected, f"row {row}")
        np.testing.assert_array_equal(values[row], x[row, expected])
        weight = np.exp(number - number[expected[0]]).sum()
        np.testing.assert_allclose(weights[row], weight, rtol=1e-5)


def compiled(path: Path, columns: int, k: int, target: str, provider: str) -> Path:
    types, op = [TensorType((None, columns), "f32")], Topk()
    through = next(x for x in lowerings_of("topk") if x.provider == provider)
    assert through.supports(op.verify(types, {"k": k}), resolve(target)) is None
    flags = resolve(target).flags + through.flags(resolve(target))
    stream = to_stream(module(op, types, {"k": k}, "", through), flags)
    to_module(stream, flags, path / "topk.vmfb")
    return path / "topk.vmfb"


# Rows that no vector divides, of one part and of several, of one group and of groups of groups.
SHAPES: list[Any] = [
    (5, 5),
    (1031, 64),
    pytest.param(40, 1, marks=pytest.mark.targets),
    pytest.param(3 * LEAST_PART + 1, 64, marks=pytest.mark.targets),
    pytest.param(151_937, 7, marks=pytest.mark.targets),
]


@pytest.mark.parametrize(("columns", "k"), SHAPES)
@pytest.mark.parametrize(
    ("target", "provider"),
    [("cpu", "portable"), ("vulkan", "portable"), ("vulkan", "vulkan_spirv")],
)
def test_every_lowering(target: str, provider: str, columns: int, k: int, tmp_path: Path) -> None:
    x = hard_rows(columns, with_tiny=provider != "portable")
    file = compiled(tmp_path, columns, k, target, provider)
    found = all_results_with_tool(file, TARGETS[target], [(x, "f32")], 3)
    check(x, k, found)
    if columns <= LEAST_PART or provider == "portable":
        return
    # A row has the same bits alone.
    alone = all_results_with_tool(file, TARGETS[target], [(x[10:11], "f32")], 3)
    for one, many in zip(alone, found, strict=True):
        assert one[0].tobytes() == many[10].tobytes()


def test_the_kernels_in_several_parts(tmp_path: Path) -> None:
    """Two parts; where more numbers reach the bound than there is room for, too."""
    columns = 2 * LEAST_PART + 5
    x = hard_rows(columns, with_tiny=True)
    file = compiled(tmp_path, columns, LARGEST_K, "vulkan", "vulkan_spirv")
    check(x, LARGEST_K, all_results_with_tool(file, "vulkan", [(x, "f32")], 3))


@pytest.mark.parametrize("columns", [1, 64, 8191, 8192, 49_152, 65_535, 128_256, 262_145])
def test_every_part_has_enough(columns: int) -> None:
    parts = num_parts(columns)
    part = -(-columns // parts)
    assert parts <= MOST_PARTS
    assert parts == 1 or columns - (parts - 1) * part >= LARGEST_K


def test_what_kernels_refuse() -> None:
    call = Topk().verify([TensorType((None, 300), "f32")], {"k": 65})
    reasons = {x.provider: x.supports(call, resolve("vulkan")) for x in lowerings_of("topk")}
    assert reasons["vulkan_spirv"] == "k is at most 64 here, not 65"
    assert reasons["portable"] is None


PORTABLE_TOO = [
    ("cuda", "cuda_ptx"),
    ("rocm:gfx942", "hip"),
    ("rocm:gfx1100", "hip"),
    ("vulkan:ada", "vulkan_spirv"),
]


@pytest.mark.targets
@pytest.mark.parametrize(
    ("target", "provider"),
    [*PORTABLE_TOO, *((t, "portable") for t, _ in PORTABLE_TOO), ("metal", "portable")],
)
def test_it_compiles_for(target: str, provider: str, tmp_path: Path) -> None:
    assert compiled(tmp_path, 49_152, 64, target, provider).stat().st_size > 0
