"""The GPU kernels of llm.topk, emulated: none of this has run on a GPU."""

from __future__ import annotations

import numpy as np
import pytest
from dialect_ext.test_topk import check, hard_rows

from llmir.dialect_ext.gpu_kernels import CUDA, HIP
from llmir.dialect_ext.registry import get_op
from llmir.dialect_ext.topk_kernels import LEAST_PART
from llmir.dialect_ext.types import TensorType

from .gpu_calls import EmulatedGpu, GpuLowered


@pytest.mark.parametrize(
    ("columns", "k", "provider"),
    [
        (5, 5, CUDA),
        (300, 1, HIP),
        (1031, 64, HIP),
        (2 * LEAST_PART - 1, 64, CUDA),  # more numbers reach the bound than there is room for
        (2 * LEAST_PART + 5, 64, CUDA),
        pytest.param(49_157, 64, CUDA, marks=pytest.mark.targets),
        pytest.param(151_936, 7, CUDA, marks=pytest.mark.targets),
    ],
)
def test_the_largest_of_hard_rows(columns: int, k: int, provider: str) -> None:
    x = hard_rows(columns, with_tiny=True)
    lowered = GpuLowered(get_op("topk"), [TensorType((None, columns), "f32")], {"k": k}, provider)
    machine = EmulatedGpu()
    found = lowered(machine, [x])
    check(x, k, list(found))
    (alone,) = {tuple(a.tobytes() for a in lowered(machine, [x[10:11]]))}
    assert alone == tuple(a[10].tobytes() for a in found)
    assert machine.called == (
        {"topk.llmir_topk"}
        if columns < 2 * LEAST_PART
        else {"topk.llmir_topk_of_parts", "topk.llmir_topk_of_lists"}
    )


def test_values_are_the_rows_own_bits() -> None:
    """But for -0, which is 0."""
    x = np.float32([[1.5, -0.0, 1e-45, -1e-45, -3e38]])
    lowered = GpuLowered(get_op("topk"), [TensorType((None, 5), "f32")], {"k": 5})
    values, ids, _ = lowered(EmulatedGpu(), [x])
    np.testing.assert_array_equal(ids, [[0, 2, 1, 3, 4]])
    assert values.view(np.uint32).tolist() == [
        (x + np.float32(0))[0, ids[0]].view(np.uint32).tolist()
    ]
