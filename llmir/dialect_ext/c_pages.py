"""The C kernels' lowerings of llm.append_kv and llm.paged_attention.

Their pages are the bytes of kv[N, 2, H, ps, D] in another order (plugins/cpu/pages.h), which
only these kernels read: a model's page ops all get them, or none (select-providers).
"""

from __future__ import annotations

from llmir.dialect_ext.base import Call, Lowering
from llmir.dialect_ext.c_kernels import (
    PROVIDER,
    CKernel,
    Count,
    Id,
    flags,
    needs_kernels,
    workgroups,
)
from llmir.dialect_ext.kv_formats import kv_pages
from llmir.dialect_ext.types import TensorType
from llmir.targets import Target

PAGES = "columns"
# As in plugins/cpu/attention.c.
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


def append_lowering() -> Lowering:
    """Of llm.append_kv."""
    return Lowering(
        provider=PROVIDER, supports=pages_supports, emit=_emit_append, flags=flags, pages=PAGES
    )


def attention_lowering() -> Lowering:
    """Of llm.paged_attention."""
    return Lowering(
        provider=PROVIDER,
        supports=_attention_supports,
        emit=_emit_attention,
        flags=flags,
        pages=PAGES,
    )


def _emit_append(call: Call, symbol: str) -> str:
    """See plugins/cpu/rows.c."""
    kv, pages = call.type_of("kv"), kv_pages(call)
    heads, page_size, dim = pages.heads, pages.page_size, pages.dim
    any_kv = TensorType((None, *kv.shape[1:]), kv.dtype)
    heads_type = TensorType((None, heads, dim), "f32")
    types = {
        "kv": any_kv,
        "k": heads_type,
        "v": heads_type,
        "slots": TensorType((None,), "i32"),
    }
    grid = f"""    %share_tokens = arith.constant {_TOKENS_OF_WORKGROUP} : index
    %shares = arith.ceildivui %T, %share_tokens : index
"""
    kernel = CKernel(
        symbol=symbol,
        function=f"llmir_append_kv_{pages.format}",
        reads=tuple(types.items()),
        writes=(),
        tied="kv",
        sizes=("T",),
        arguments=("kv", "k", "v", "slots", "T", heads, page_size, dim, Id(0), Count(0)),
        grid=grid + workgroups("%shares"),
    )
    casts = "\n".join(
        f"  %{n}_any = tensor.cast %{n} : {call.type_of(n)} to {t}" for n, t in types.items()
    )
    dispatch = kernel.dispatch(
        {name: f"%{name}_any" for name in types},
        {"kv": ["%N"], "k": ["%T"], "v": ["%T"], "slots": ["%T"]},
        {"kv": "%kv_written"},
    )
    return f"""{kernel.executable()}
{call.signature(symbol)} {{
{casts}
  %zero = arith.constant 0 : index
  %T = tensor.dim %slots_any, %zero : {types["slots"]}
  %N = tensor.dim %kv_any, %zero : {any_kv}
  {dispatch}
  %y = tensor.cast %kv_written : {any_kv} to {kv}
  return %y : {kv}
}}
"""


def _emit_attention(call: Call, symbol: str) -> str:
    """Two dispatches, see plugins/cpu/attention.c: attend, and combine where that was split."""
    q, kv = (call.type_of(n) for n in ("q", "kv"))
    _, q_heads, dim = q.shape
    pages = kv_pages(call)
    heads, page_size = pages.heads, pages.page_size
    index = TensorType((None,), "i32")
    any_q = TensorType((None, q_heads, dim), "f32")
    any_kv = TensorType((None, *kv.shape[1:]), kv.dtype)
    types = {
        "q": any_q,
        "kv": any_kv,
        "page_table": TensorType((None, None), "i32"),
        "token_seq": index,
        "positions": index,
    }
    parts = TensorType((None,), "f32")
    sinks = call.operand("sinks")
    with_sinks = {} if sinks is None else {"sinks": sinks}
    window = int(call.attrs["window"])
    scale, softcap = float(call.attrs["scale"]), float(call.attrs["softcap"])
    sizes = _sizes(q_heads, heads, page_size, dim)
    attend = CKernel(
        symbol=f"{symbol}_attend",
        function=f"llmir_attend_{pages.format}",
        reads=(*types.items(), *with_sinks.items()),
        writes=(("parts", parts), ("y", any_q)),
        sizes=("T", "P"),
        arguments=(
            *types,
            "sinks" if with_sinks else "q",
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
            len(with_sinks),
            Id(0),
        ),
        grid=sizes + "\n" + workgroups("%attend_count"),
    )
    combine = CKernel(
        symbol=f"{symbol}_combine",
        function="llmir_combine",
        reads=(("parts", parts), ("positions", index), *with_sinks.items(), ("y", any_q)),
        writes=(),
        tied="y",
        sizes=("T", "P"),
        arguments=(
            "parts",
            "positions",
            "sinks" if with_sinks else "parts",
            "y",
            "T",
            "P",
            q_heads,
            page_size,
            dim,
            window,
            len(with_sinks),
            Id(0),
        ),
        grid=sizes + "\n" + workgroups("%combine_count"),
    )
    casts = "\n".join(
        f"  %{n}_any = tensor.cast %{n} : {call.type_of(n)} to {t}" for n, t in types.items()
    )
    sinks_value = {name: f"%{name}" for name in with_sinks}
    attended = attend.dispatch(
        {**{name: f"%{name}_any" for name in types}, **sinks_value},
        {
            "q": ["%T"],
            "kv": ["%N"],
            "page_table": ["%S", "%P"],
            "token_seq": ["%T"],
            "positions": ["%T"],
            "parts": ["%num_parts"],
            "y": ["%T"],
        },
        {"parts": "%parts", "y": "%y_attended"},
    )
    combined = combine.dispatch(
        {"parts": "%parts", "positions": "%positions_any", **sinks_value, "y": "%y_attended"},
        {"parts": ["%num_parts"], "positions": ["%T"], "y": ["%T"]},
        {"y": "%y_any"},
    )
    return f"""{attend.executable()}{combine.executable()}
{call.signature(symbol)} {{
{casts}
  %first = arith.constant 0 : index
  %second = arith.constant 1 : index
  %T = tensor.dim %q_any, %first : {any_q}
  %N = tensor.dim %kv_any, %first : {any_kv}
  %S = tensor.dim %page_table_any, %first : {types["page_table"]}
  %P = tensor.dim %page_table_any, %second : {types["page_table"]}
{sizes}
  {attended}
  {combined}
  %y = tensor.cast %y_any : {any_q} to {q}
  return %y : {q}
}}
"""


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
