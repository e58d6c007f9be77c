"""The GPU kernels' lowerings of llm.topk: plugins/vulkan/topk.comp and plugins/cuda/topk.cu.

A row is cut into parts.  The k largest of each are found first, and of these the k largest.
"""

from __future__ import annotations

from llmir.dialect_ext.base import Call, Lowering
from llmir.dialect_ext.c_kernels import Plan
from llmir.dialect_ext.gpu_kernels import GpuKernel, gpu_lowerings
from llmir.dialect_ext.spirv_kernels import SpirvKernel, SpirvPlan, needs_shader, spirv_lowering
from llmir.dialect_ext.types import TensorType
from llmir.targets import Target

LARGEST_K = 64
"""16 lists of so many fill the kernels' room."""
MOST_PARTS = 16
LEAST_PART = 4096
"""Numbers: fewer are no work for a workgroup."""
_THREADS = 256
_RESULTS = ("values", "ids", "weights")
_LISTS = ("list_values", "list_ids", "list_weights")


def topk_kernels() -> tuple[Lowering, ...]:
    """Of llm.topk: for Vulkan, CUDA and ROCm."""
    return (spirv_lowering(_spirv_plan, _spirv_supports), *gpu_lowerings(_gpu_plan, _supports))


def num_parts(columns: int) -> int:
    """In how many parts a row is searched.  Each is longer than LARGEST_K, unless it is the row."""
    return max(1, min(MOST_PARTS, columns // LEAST_PART))


def _supports(call: Call, target: Target) -> str | None:
    k = int(call.attrs["k"])
    return None if k <= LARGEST_K else f"k is at most {LARGEST_K} here, not {k}"


def _spirv_supports(call: Call, target: Target) -> str | None:
    return needs_shader(target, "topk") or _supports(call, target)


def _tensors(call: Call) -> dict[str, TensorType]:
    """All that the kernels read and write; their first dim is L."""
    columns, k = int(call.type_of("x").shape[1] or 0), int(call.attrs["k"])
    lists = (None, k, num_parts(columns))
    return {
        "x": TensorType((None, columns), "f32"),
        "list_values": TensorType(lists, "f32"),
        "list_ids": TensorType(lists, "i32"),
        "list_weights": TensorType((None, lists[2]), "f32"),
        "values": TensorType((None, k), "f32"),
        "ids": TensorType((None, k), "i32"),
        "weights": TensorType((None,), "f32"),
    }


def _spirv_plan(call: Call) -> SpirvPlan:
    tensors = _tensors(call)
    (_, columns), (_, k, parts) = tensors["x"].shape, tensors["list_values"].shape

    def kernel(reads: tuple[str, ...], writes: tuple[str, ...], row: int, cut: int) -> SpirvKernel:
        lists = parts if reads == _LISTS else 0
        return SpirvKernel(
            shader="topk",
            constants={"N": row, "PART": -(-row // cut), "PARTS": cut, "LISTS": lists, "K": k},
            reads=reads,
            writes=writes,
            push=(),
            grid=(str(cut), "L"),
        )

    row = ("x", "x", "x")
    if parts == 1:
        kernels: tuple[SpirvKernel, ...] = (kernel(row, _RESULTS, columns, 1),)
    else:
        kernels = (
            kernel(row, _LISTS, columns, parts),
            kernel(_LISTS, _RESULTS, k * parts, 1),
        )
    return SpirvPlan(
        tensors=tensors,
        dims=dict.fromkeys(tensors, ("L",)),
        sizes={"L": ("x", 0)},
        kernels=kernels,
        results=_RESULTS,
    )


def _gpu_plan(call: Call) -> Plan:
    tensors = _tensors(call)
    (_, columns), (_, k, parts) = tensors["x"].shape, tensors["list_values"].shape
    part = -(-columns // parts)

    def kernel(
        name: str, reads: tuple[str, ...], writes: tuple[str, ...], numbers: tuple[int, ...]
    ) -> GpuKernel:
        return GpuKernel(
            unit="topk",
            function=name,
            threads=_THREADS,
            reads=reads,
            writes=writes,
            arguments=numbers,
            grid=(str(parts) if writes == _LISTS else "1", "L"),
        )

    if parts == 1:
        kernels: tuple[GpuKernel, ...] = (kernel("llmir_topk", ("x",), _RESULTS, (columns, k)),)
    else:
        kernels = (
            kernel("llmir_topk_of_parts", ("x",), _LISTS, (columns, part, parts, k)),
            kernel("llmir_topk_of_lists", _LISTS, _RESULTS, (parts, k)),
        )
    return Plan(
        tensors=tensors,
        dims=dict.fromkeys(tensors, ("L",)),
        sizes={"L": ("x", 0)},
        kernels=kernels,
        results=_RESULTS,
    )
