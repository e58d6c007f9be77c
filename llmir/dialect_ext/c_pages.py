"""The C kernels' lowerings of llm.append_kv and llm.paged_attention.

Their pages are the bytes of kv[N, 2, H, ps, D] in another order (plugins/cpu/pages.h), which
only these kernels read: a model's page ops all get them, or none (select-providers).
"""

from __future__ import annotations

import numpy as np

from llmir.dialect_ext.attention_operands import attention_operands
from llmir.dialect_ext.base import Array, Call, Lowering
from llmir.dialect_ext.c_kernels import (
    CKernel,
    Count,
    Id,
    Plan,
    kernel_lowering,
    needs_kernels,
    shares,
)
from llmir.dialect_ext.kv_formats import SCALE_BYTES, kv_pages
from llmir.dialect_ext.types import TensorType
from llmir.targets import Target

PAGES = "columns"
# As in plugins/cpu/attention.c and attention_rows.h.
_LANES = 16
_KV_CHUNK = 256
_MAX_ROW_FLOATS = 4096
_MAX_TILE_TOKENS = 16
_MAX_TILE_ROWS = 64
_MAX_DIM = 256
_MAX_SPLIT_TOKENS = 16
_MAX_SPLIT_PARTS = 512
_TOKENS_OF_WORKGROUP = 16


def pages_supports(call: Call, target: Target) -> str | None:
    """A `supports` of ops on pages."""
    if reason := needs_kernels(target):
        return reason
    pages = kv_pages(call)
    dim = pages.dim
    if pages.page_size % _LANES:
        return f"pages of {pages.page_size} tokens are not whole vectors of {_LANES}"
    if dim % _LANES or dim > _MAX_DIM:
        return f"heads of {dim} are not whole vectors of {_LANES}, at most {_MAX_DIM}"
    return None


def _attention_supports(call: Call, target: Target) -> str | None:
    if reason := pages_supports(call, target):
        return reason
    q_heads, dim = call.type_of("q").shape[1:]
    group = q_heads // call.type_of("kv").shape[2]
    if group * dim > _MAX_ROW_FLOATS or group > _MAX_TILE_ROWS:
        return f"{group} heads of {dim} on a KV head are more than {_MAX_ROW_FLOATS} numbers"
    return None


def in_columns(kv: Array, format_name: str) -> Array:
    """Pages [N, 2, H, ps, _D] as a tensor's type says, in the kernels' order of elements."""
    n, _, h, ps, d = kv.shape
    k, v = kv[:, 0], kv[:, 1]
    if format_name == "int8":
        k_parts, v_parts = (np.split(x, [d - SCALE_BYTES], axis=-1) for x in (k, v))
        k_parts[0] = k_parts[0].transpose(0, 1, 3, 2)
        k, v = (np.concatenate([x.reshape(n, h, -1) for x in p], -1) for p in (k_parts, v_parts))
    elif format_name == "bf16":
        k = k.reshape(n, h, ps, d // 2, 2).transpose(0, 1, 3, 2, 4)
        v = v.reshape(n, h, ps // 2, 2, d).transpose(0, 1, 2, 4, 3)
    else:
        k = k.transpose(0, 1, 3, 2)
    both = [np.ascontiguousarray(x).reshape(n, h, ps, d) for x in (k, v)]
    return np.ascontiguousarray(np.stack(both, axis=1))


def in_rows(kv: Array, format_name: str) -> Array:
    """What `in_columns` made, as the tensor's type says again."""
    places = in_columns(np.arange(kv.size).reshape(kv.shape), format_name)
    rows = np.empty_like(kv)
    rows.reshape(-1)[places.reshape(-1)] = kv.reshape(-1)
    return rows


def append_lowering() -> Lowering:
    """Of llm.append_kv."""
    return kernel_lowering(_append_plan, pages_supports, PAGES)


def attention_lowering() -> Lowering:
    """Of llm.paged_attention."""
    return kernel_lowering(_attention_plan, _attention_supports, PAGES)


def _append_plan(call: Call) -> Plan:
    """See plugins/cpu/rows.c."""
    kv, pages = call.type_of("kv"), kv_pages(call)
    heads, page_size, dim = pages.heads, pages.page_size, pages.dim
    heads_type = TensorType((None, heads, dim), "f32")
    kernel = CKernel(
        function=f"llmir_append_kv_{pages.format}",
        reads=("kv", "k", "v", "slots"),
        writes=(),
        tied="kv",
        arguments=("kv", "k", "v", "slots", "T", heads, page_size, dim, Id(0), Count(0)),
        grid=("shares",),
    )
    return Plan(
        tensors={
            "kv": TensorType((None, *kv.shape[1:]), kv.dtype),
            "k": heads_type,
            "v": heads_type,
            "slots": TensorType((None,), "i32"),
        },
        dims={"kv": ("N",), "k": ("T",), "v": ("T",), "slots": ("T",)},
        sizes={"T": ("slots", 0), "N": ("kv", 0)},
        shapes=shares("T", _TOKENS_OF_WORKGROUP),
        kernels=(kernel,),
        results=("kv",),
    )


def _attention_plan(call: Call) -> Plan:
    """Two kernels, see plugins/cpu/attention.c: attend, and combine where that was split."""
    operands, pages = attention_operands(call), kv_pages(call)
    _, q_heads, dim = call.type_of("q").shape
    heads, page_size = pages.heads, pages.page_size
    window = int(call.attrs["window"])
    scale, softcap = float(call.attrs["scale"]), float(call.attrs["softcap"])
    reads = ("q", "kv", "page_table", "token_seq", "positions")
    sinks = ("sinks",) if call.operand("sinks") is not None else ()
    attend = CKernel(
        function=f"llmir_attend_{pages.format}",
        reads=(*reads, *sinks),
        writes=("parts", "y"),
        arguments=(
            *reads,
            "sinks" if sinks else "q",
            "parts",
            "y",
            "T",
            q_heads,
            heads,
            page_size,
            dim,
            "P",
            scale,
            softcap,
            window,
            len(sinks),
            Id(0),
        ),
        grid=("attend_count",),
    )
    combine = CKernel(
        function="llmir_combine",
        reads=("parts", "positions", *sinks, "y"),
        writes=(),
        tied="y",
        arguments=(
            "parts",
            "positions",
            "sinks" if sinks else "parts",
            "y",
            "T",
            "P",
            q_heads,
            page_size,
            dim,
            window,
            len(sinks),
            Id(0),
        ),
        grid=("combine_count",),
    )
    return Plan(
        tensors=operands.tensors,
        dims=operands.dims,
        sizes=operands.sizes,
        shapes=_sizes(q_heads, heads, page_size, dim),
        kernels=(attend, combine),
        results=("y",),
    )


def _sizes(q_heads: int, heads: int, page_size: int, dim: int) -> str:
    """%attend_count, %combine_count and %num_parts (floats), as is_split in attention.c says."""
    group = q_heads // heads
    most_rows = min(_MAX_ROW_FLOATS // dim, _MAX_TILE_ROWS)
    tile = max(1, min(_MAX_TILE_TOKENS, most_rows // group))
    return f"""    %one = arith.constant 1 : index
    %heads = arith.constant {heads} : index
    %q_heads = arith.constant {q_heads} : index
    %page_size = arith.constant {page_size} : index
    %chunk_size = arith.constant {_KV_CHUNK} : index
    %tile_tokens = arith.constant {tile} : index
    %most_tokens = arith.constant {_MAX_SPLIT_TOKENS} : index
    %most_parts = arith.constant {_MAX_SPLIT_PARTS} : index
    %part_floats = arith.constant {q_heads * (dim + 2)} : index
    %context = arith.muli %P, %page_size : index
    %chunks = arith.ceildivui %context, %chunk_size : index
    %chunks_of_all = arith.muli %T, %chunks : index
    %few_tokens = arith.cmpi ule, %T, %most_tokens : index
    %few_parts = arith.cmpi ule, %chunks_of_all, %most_parts : index
    %several = arith.cmpi ugt, %chunks, %one : index
    %small = arith.andi %few_tokens, %few_parts : i1
    %is_split = arith.andi %small, %several : i1
    %tiles = arith.ceildivui %T, %tile_tokens : index
    %items = arith.select %is_split, %chunks_of_all, %tiles : index
    %attend_count = arith.muli %items, %heads : index
    %split_count = arith.muli %T, %q_heads : index
    %combine_count = arith.select %is_split, %split_count, %one : index
    %split_floats = arith.muli %chunks_of_all, %part_floats : index
    %num_parts = arith.select %is_split, %split_floats, %one : index"""
