"""The Vulkan kernels' lowering of llm.paged_attention.

Two dispatches, see plugins/vulkan/attention.glsl: attend, and combine where few tokens see a long
context, whose chunks then have a workgroup each.  Either way a row has the same bits.
"""

from __future__ import annotations

from llmir.dialect_ext.attention_operands import attention_operands
from llmir.dialect_ext.base import Call, Lowering
from llmir.dialect_ext.kv_formats import kv_pages
from llmir.dialect_ext.spirv_kernels import (
    SpirvKernel,
    SpirvPlan,
    needs_shader,
    spirv_lowering,
)
from llmir.targets import Target

_FORMATS = {"f32": 0, "bf16": 1, "int8": 2, "fp8": 3}
_WORKGROUP = 64
# As in plugins/vulkan/attention.glsl and paged_attention.comp.
_CHUNK = 128
_SEGMENTS = 8
_MAX_SLICES = 8
_MAX_SHARED_BYTES = 16384
"""What every Vulkan device has."""
_MAX_SPLIT_TOKENS = 16
_MAX_SPLIT_PARTS = 512


def attention_lowering() -> Lowering:
    """Of llm.paged_attention."""
    return spirv_lowering(_plan, _supports)


def _supports(call: Call, target: Target) -> str | None:
    if reason := needs_shader(target, "paged_attention", "paged_attention_combine"):
        return reason
    pages = kv_pages(call)
    if pages.format not in _FORMATS:
        return f"pages are {', '.join(_FORMATS)} here, not {pages.format}"
    if pages.dim % 4 or pages.dim > 4 * _WORKGROUP:
        return f"heads of {pages.dim} are not a multiple of 4, at most {4 * _WORKGROUP}"
    group = call.type_of("q").shape[1] // pages.heads
    shared = 4 * (group * (pages.dim + _SEGMENTS) + _scratch(group, pages.dim))
    if shared > _MAX_SHARED_BYTES:
        return (
            f"{group} heads of {pages.dim} on a KV head need {shared} bytes of shared memory; "
            f"devices have {_MAX_SHARED_BYTES}"
        )
    return None


def _slices(dim: int) -> int:
    """Invocations that share four elements of V: a power of two."""
    slices = 1
    while slices < _MAX_SLICES and 2 * slices * (dim // 4) <= _WORKGROUP:
        slices *= 2
    return slices


def _scratch(group: int, dim: int) -> int:
    """Floats."""
    slices = _slices(dim)
    return group * max(_CHUNK, slices * dim if slices > 1 else 0)


def _plan(call: Call) -> SpirvPlan:
    operands, pages = attention_operands(call), kv_pages(call)
    _, q_heads, dim = call.type_of("q").shape
    group = q_heads // pages.heads
    sinks = ("sinks",) if call.operand("sinks") is not None else ()
    shared = {
        "local_size_x": _WORKGROUP,
        "Q_HEADS": q_heads,
        "D4": dim // 4,
        "WINDOW": int(call.attrs["window"]),
        "HAS_SINKS": len(sinks),
    }
    attend = SpirvKernel(
        shader="paged_attention",
        constants={
            **shared,
            "GROUP": group,
            "PAGE_SIZE": pages.page_size,
            "FORMAT": _FORMATS[pages.format],
            "SLICES": _slices(dim),
            "SCALE": float(call.attrs["scale"]),
            "SOFTCAP": float(call.attrs["softcap"]),
            "SCRATCH": _scratch(group, dim),
        },
        reads=("q", "kv", "page_table", "token_seq", "positions", "sinks" if sinks else "q"),
        writes=("parts", "y"),
        push=("P", "parts_of_row"),
        grid=("T", str(pages.heads), "attend_chunks"),
    )
    combine = SpirvKernel(
        shader="paged_attention_combine",
        constants=shared,
        reads=("parts", "positions", "sinks" if sinks else "parts", "y"),
        writes=(),
        tied="y",
        push=("parts_of_row",),
        grid=("combine_tokens", str(q_heads)),
    )
    return SpirvPlan(
        tensors=operands.tensors,
        dims=operands.dims,
        sizes=operands.sizes,
        shapes=_sizes(q_heads, pages.page_size, dim),
        kernels=(attend, combine),
        results=("y",),
    )


def _sizes(q_heads: int, page_size: int, dim: int) -> str:
    """%parts_of_row (0: not split), %attend_chunks, %combine_tokens and %num_parts (floats)."""
    return f"""  %none = arith.constant 0 : index
  %one = arith.constant 1 : index
  %page_size = arith.constant {page_size} : index
  %chunk_size = arith.constant {_CHUNK} : index
  %most_tokens = arith.constant {_MAX_SPLIT_TOKENS} : index
  %most_parts = arith.constant {_MAX_SPLIT_PARTS} : index
  %token_floats = arith.constant {q_heads * (dim + 4)} : index
  %context = arith.muli %P, %page_size : index
  %chunks = arith.ceildivui %context, %chunk_size : index
  %chunks_of_all = arith.muli %T, %chunks : index
  %few_tokens = arith.cmpi ule, %T, %most_tokens : index
  %few_parts = arith.cmpi ule, %chunks_of_all, %most_parts : index
  %several = arith.cmpi ugt, %chunks, %one : index
  %small = arith.andi %few_tokens, %few_parts : i1
  %is_split = arith.andi %small, %several : i1
  %parts_of_row = arith.select %is_split, %chunks, %none : index
  %attend_chunks = arith.select %is_split, %chunks, %one : index
  %combine_tokens = arith.select %is_split, %T, %one : index
  %split_floats = arith.muli %chunks_of_all, %token_floats : index
  %num_parts = arith.select %is_split, %split_floats, %one : index"""
