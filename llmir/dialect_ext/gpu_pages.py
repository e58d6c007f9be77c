"""The GPU kernels' lowerings of ops on KV pages.  See plugins/cuda/pages.cu and attention.cu.

Their pages are bf16 in the order that the type says ("rows"), which portable code reads as well.
"""

from __future__ import annotations

from llmir.dialect_ext.attention_operands import attention_operands
from llmir.dialect_ext.base import Call, Lowering
from llmir.dialect_ext.c_kernels import Plan
from llmir.dialect_ext.gpu_kernels import CUDA, GpuKernel, gpu_lowerings
from llmir.dialect_ext.kv_formats import kv_pages
from llmir.dialect_ext.types import TensorType
from llmir.targets import Target

_HEADS_OF_GROUP = 8  # as in plugins/cuda/pages.cu
_HAS_Q_NORM, _HAS_K_NORM = 1, 2
# As in plugins/cuda/attention.cu.
_CHUNK, _WARPS, _TILE_ROWS = 128, 4, 16
_HEAD_DIMS = (64, 128)
_SPLIT_TOKENS = 32  # up to so many a warp has a chunk of one token; either way gives the same bits


def append_lowerings() -> tuple[Lowering, ...]:
    """Of llm.append_kv."""
    return gpu_lowerings(_append_plan, _pages_support)


def rope_append_lowerings() -> tuple[Lowering, ...]:
    """Of llm.rope_append."""
    return gpu_lowerings(_rope_append_plan, _pages_support)


def attention_lowerings() -> tuple[Lowering, ...]:
    """Of llm.paged_attention: it needs NVIDIA's matrix unit."""
    return gpu_lowerings(_attention_plan, _attention_supports, providers=(CUDA,))


def _pages_support(call: Call, target: Target) -> str | None:
    pages = kv_pages(call)
    if pages.format != "bf16":
        return f"KV pages are bf16 in these kernels, not {pages.format}"
    return None if pages.dim % 2 == 0 else f"heads of {pages.dim} have no halves to turn"


def _attention_supports(call: Call, target: Target) -> str | None:
    if reason := _pages_support(call, target):
        return reason
    pages = kv_pages(call)
    if pages.dim not in _HEAD_DIMS:
        return f"heads are of {' or '.join(map(str, _HEAD_DIMS))} numbers here, not {pages.dim}"
    group = call.type_of("q").shape[1] // pages.heads
    if group > _TILE_ROWS:
        return f"{group} query heads on a KV head are more than {_TILE_ROWS}"
    if float(call.attrs["softcap"]):
        return "softcap is not in these kernels"
    return "sinks are not in these kernels" if call.operand("sinks") is not None else None


def _kv(call: Call) -> TensorType:
    kv = call.type_of("kv")
    return TensorType((None, *kv.shape[1:]), kv.dtype)


def _append_plan(call: Call) -> Plan:
    pages = kv_pages(call)
    heads_type = TensorType((None, pages.heads, pages.dim), "f32")
    kernel = GpuKernel(
        unit="pages",
        function="llmir_append_kv",
        threads=256,
        reads=("k", "v", "slots", "kv"),
        writes=(),
        tied="kv",
        arguments=("T", pages.heads, pages.page_size, pages.dim),
        grid=("groups",),
    )
    return Plan(
        tensors={
            "kv": _kv(call),
            "k": heads_type,
            "v": heads_type,
            "slots": TensorType((None,), "i32"),
        },
        dims={"kv": ("N",), "k": ("T",), "v": ("T",), "slots": ("T",)},
        sizes={"T": ("slots", 0), "N": ("kv", 0)},
        shapes=_groups(2 * pages.heads),
        kernels=(kernel,),
        results=("kv",),
    )


def _rope_append_plan(call: Call) -> Plan:
    pages, q_heads = kv_pages(call), call.results[0].shape[1]
    norms = {n: t for n, t in call.present if n in ("q_norm", "k_norm")}
    flags = _HAS_Q_NORM * ("q_norm" in norms) + _HAS_K_NORM * ("k_norm" in norms)
    kernel = GpuKernel(
        unit="pages",
        function="llmir_rope_append",
        threads=256,
        reads=(
            *("qkv", "positions", "table", "slots"),
            *(n if n in norms else "table" for n in ("q_norm", "k_norm")),
            "kv",
        ),
        writes=("y",),
        tied="kv",
        arguments=(
            *("T", q_heads, pages.heads, pages.page_size, pages.dim, flags),
            float(call.attrs["eps"]),
        ),
        grid=("groups",),
    )
    index = TensorType((None,), "i32")
    return Plan(
        tensors={
            "qkv": TensorType((None, call.type_of("qkv").shape[1]), "f32"),
            "positions": index,
            "table": call.type_of("table"),
            "slots": index,
            "kv": _kv(call),
            **norms,
            "y": TensorType((None, q_heads, pages.dim), "f32"),
        },
        dims={**dict.fromkeys(("qkv", "positions", "slots", "y"), ("T",)), "kv": ("N",)},
        sizes={"T": ("qkv", 0), "N": ("kv", 0)},
        shapes=_groups(q_heads + 2 * pages.heads),
        kernels=(kernel,),
        results=("y", "kv"),
    )


def _groups(heads: int) -> str:
    """MLIR: %groups, a warp for each of the heads of each token."""
    return f"""    %heads_of_token = arith.constant {heads} : index
    %heads_of_group = arith.constant {_HEADS_OF_GROUP} : index
    %all_heads = arith.muli %T, %heads_of_token : index
    %groups = arith.ceildivui %all_heads, %heads_of_group : index"""


def _attention_plan(call: Call) -> Plan:
    """Split and combined where there are few tokens, whole where there are more.

    Of the two ways one has grids of zeros.
    """
    pages, (_, q_heads, dim) = kv_pages(call), call.type_of("q").shape
    window, scale = int(call.attrs["window"]), float(call.attrs["scale"])
    operands, unit = attention_operands(call), f"attention_{dim}"
    reads = ("q", "kv", "page_table", "token_seq", "positions")
    numbers = ("T", "P", q_heads, pages.heads, pages.page_size, scale, window)
    split = GpuKernel(
        unit=unit,
        function="llmir_attend_split",
        threads=128,
        reads=reads,
        writes=("parts",),
        arguments=numbers,
        grid=("split_x", "split_y", "split_z"),
    )
    combine = GpuKernel(
        unit=unit,
        function="llmir_combine",
        threads=128,
        reads=("parts", "positions"),
        writes=("y",),
        arguments=("T", "P", q_heads, pages.page_size, window),
        grid=("combine_x", "split_one", "split_one"),
    )
    whole = GpuKernel(
        unit=unit,
        function="llmir_attend",
        threads=128,
        reads=(*reads, "y"),
        writes=(),
        tied="y",
        arguments=numbers,
        grid=("whole_x", "whole_y", "whole_one"),
    )
    return Plan(
        tensors=operands.tensors,
        dims=operands.dims,
        sizes=operands.sizes,
        shapes=_attention_sizes(q_heads, pages.heads, pages.page_size, dim),
        kernels=(split, combine, whole),
        results=("y",),
    )


def _attention_sizes(q_heads: int, heads: int, page_size: int, dim: int) -> str:
    """MLIR: the grids, and %num_parts floats."""
    return f"""    %none = arith.constant 0 : index
    %one = arith.constant 1 : index
    %heads = arith.constant {heads} : index
    %q_heads = arith.constant {q_heads} : index
    %page_size = arith.constant {page_size} : index
    %chunk_size = arith.constant {_CHUNK} : index
    %warps = arith.constant {_WARPS} : index
    %most_tokens = arith.constant {_SPLIT_TOKENS} : index
    %part_floats = arith.constant {q_heads * (dim + 2)} : index
    %tile_tokens = arith.constant {_TILE_ROWS // (q_heads // heads)} : index
    %is_split = arith.cmpi ule, %T, %most_tokens : index
    %split_one = arith.select %is_split, %one, %none : index
    %whole_one = arith.subi %one, %split_one : index
    %context = arith.muli %P, %page_size : index
    %chunks = arith.ceildivui %context, %chunk_size : index
    %chunk_groups = arith.ceildivui %chunks, %warps : index
    %split_x = arith.muli %chunk_groups, %split_one : index
    %split_y = arith.muli %heads, %split_one : index
    %split_z = arith.muli %T, %split_one : index
    %rows = arith.muli %T, %q_heads : index
    %row_groups = arith.ceildivui %rows, %warps : index
    %combine_x = arith.muli %row_groups, %split_one : index
    %tiles = arith.ceildivui %T, %tile_tokens : index
    %tile_groups = arith.ceildivui %tiles, %warps : index
    %whole_x = arith.muli %tile_groups, %whole_one : index
    %whole_y = arith.muli %heads, %whole_one : index
    %all_chunks = arith.muli %T, %chunks : index
    %all_floats = arith.muli %all_chunks, %part_floats : index
    %split_floats = arith.muli %all_floats, %split_one : index
    %num_parts = arith.addi %split_floats, %one : index"""
