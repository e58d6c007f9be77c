"""What `auto` stands for."""

from __future__ import annotations

import pytest

from llmir.compiler.options import CompileOptions
from llmir.targets import resolve


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["cpu:x86-64-v3"], "bf16"),
        (["cuda:sm_80"], "bf16"),
        (["cpu:x86-64-v3", "vulkan", "cuda:sm_80"], "bf16"),
        (["vulkan", "cuda:sm_80"], "bf16"),
        (["vulkan"], "f32"),
        (["vulkan", "rocm:gfx942", "metal"], "f32"),
    ],
)
def test_pages_are_of_bf16_where_one_target_reads_them_with_kernels(
    names: list[str], expected: str
) -> None:
    targets = [resolve(name) for name in names]
    assert CompileOptions().kv_dtype_for(targets) == expected
    assert CompileOptions(kv_dtype="int8").kv_dtype_for(targets) == "int8"
