"""llm.paged_attention: causal attention of a ragged batch over a paged KV cache.

    s[t, h, j] = scale * q[t, h, :] · K(token_seq[t], j, h / G)
    y[t, h, :] = Σ_j softmax_j(s[t, h, :]) * V(token_seq[t], j, h / G)
    over the positions   max(0, positions[t] - window + 1) <= j <= positions[t]

    K(s, j, g) = kv[page_table[s, j / ps], 0, g, j % ps, :];  V: index 1

Shape legend: T tokens, S sequences, P page-table columns, N pages of the pool,
Hq query heads, H KV heads, G = Hq / H, ps tokens a page, D head dim.
`window` 0 means no window.  The softmax is in float32 whatever kv's dtype.

What holds for every lowering: a row's result depends on its own positions only,
bit for bit, whatever T, S, P and the other rows are; nothing outside a row's
positions is read into its arithmetic (freed pages and unwritten slots may hold
NaN); no transient grows with N.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from llmir.dialect_ext.base import (
    Array,
    Attribute,
    AttrValue,
    Call,
    Lowering,
    Op,
    Operand,
    everywhere,
    literal,
)
from llmir.dialect_ext.types import TensorType, is_static

PAGE_SIZES = (8, 16, 32)


class PagedAttention(Op):
    """q f32[T, Hq, D], kv f32|f16|bf16[N, 2, H, ps, D], … → f32[T, Hq, D].

    page_table i32[S, P], token_seq i32[T], positions i32[T], query_start i32[S+1],
    context_len i32[S]: as llmir.runtime.base.StepBatch has them, for one group.
    """

    name = "paged_attention"
    operands = (
        Operand(name="q", dims=("T", "Hq", "D"), dtypes=("f32",)),
        Operand(name="kv", dims=("N", 2, "H", "ps", "D"), dtypes=("f32", "f16", "bf16")),
        Operand(name="page_table", dims=("S", "P"), dtypes=("i32",)),
        Operand(name="token_seq", dims=("T",), dtypes=("i32",)),
        Operand(name="positions", dims=("T",), dtypes=("i32",)),
        Operand(name="query_start", dims=("S+1",), dtypes=("i32",)),
        Operand(name="context_len", dims=("S",), dtypes=("i32",)),
    )
    attributes = (Attribute(name="scale", kind=float), Attribute(name="window", kind=int))

    def check(
        self, operands: Sequence[TensorType | None], attrs: Mapping[str, AttrValue]
    ) -> None:
        q, kv = operands[:2]
        assert q is not None
        assert kv is not None
        self.expect(all(map(is_static, q.shape[1:])), f"Hq and D of q must be static, got {q}")
        self.expect(
            all(map(is_static, kv.shape[1:])), f"H, ps and D of kv must be static, got {kv}"
        )
        self.expect(
            q.shape[1] % kv.shape[2] == 0,
            f"Hq = {q.shape[1]} of q must be a multiple of H = {kv.shape[2]} of kv",
        )
        self.expect(
            kv.shape[3] in PAGE_SIZES,
            f"the page size must be {', '.join(map(str, PAGE_SIZES))}; got {kv.shape[3]} in {kv}",
        )
        self.expect(attrs["window"] >= 0, f"window must be >= 0, got {attrs['window']}")
        self.expect(
            bool(np.isfinite(attrs["scale"])), f"scale must be finite, got {attrs['scale']}"
        )

    def result_types(
        self, operands: Sequence[TensorType | None], attrs: Mapping[str, AttrValue]
    ) -> tuple[TensorType, ...]:
        q = operands[0]
        assert q is not None
        return (q,)

    def reference(self, *operands: Array | None, **attrs: AttrValue) -> Array:
        q, kv, page_table, token_seq, positions = operands[:5]
        assert q is not None
        assert kv is not None
        assert page_table is not None
        assert token_seq is not None
        assert positions is not None
        group, page_size = q.shape[1] // kv.shape[2], kv.shape[3]
        y = np.zeros_like(q)
        for t, (sequence, last) in enumerate(zip(token_seq, positions, strict=True)):
            first = max(0, last - int(attrs["window"]) + 1) if attrs["window"] else 0
            j = np.arange(first, last + 1)
            pages = page_table[sequence, j // page_size]
            k, v = (kv[pages, x, :, j % page_size].astype(np.float64) for x in (0, 1))  # [J, H, D]
            for h in range(q.shape[1]):
                scores = attrs["scale"] * (k[:, h // group] @ q[t, h].astype(np.float64))
                weights = np.exp(scores - scores.max())
                y[t, h] = weights @ v[:, h // group] / weights.sum()
        return y

    @property
    def lowerings(self) -> tuple[Lowering, ...]:
        return (
            Lowering(provider="portable", variant="loops", supports=everywhere, emit=_emit_loops),
        )


def _emit_loops(call: Call, symbol: str) -> str:
    """Three all-parallel generics whose bodies loop: scores, their max and sum, the result.

    The form that IREE compiles for every target.  It holds T × Hq × (P * ps)
    scores; those outside a row's positions are never computed nor read.
    """
    q, kv, table = call.type_of("q"), call.type_of("kv"), call.type_of("page_table")
    tokens, num_heads, head_dim = q.shape
    page_size, window = kv.shape[3], int(call.attrs["window"])
    columns = table.shape[1]
    scores = TensorType(
        (tokens, num_heads, columns * page_size if is_static(columns) else None), "f32"
    )
    stats = TensorType((tokens, num_heads), "f32")
    dyn_t = "" if is_static(tokens) else "%t_size"
    dyn_tc = ", ".join(filter(None, (dyn_t, "" if is_static(columns) else "%c_size")))
    widen = "" if kv.dtype == "f32" else f"arith.extf %raw : {kv.dtype} to f32"

    def read_kv(name: str, which: str, d: str) -> str:
        """`%name`: element d of K (%c0) or V (%c1) at position %j of sequence %s, head %g."""
        raw = "raw" if widen else name
        read = f"""%column = arith.divui %j, %ps : index
        %page_i32 = tensor.extract %page_table[%s, %column] : {table}
        %page = arith.index_cast %page_i32 : i32 to index
        %offset = arith.remui %j, %ps : index
        %{raw} = tensor.extract %kv[%page, {which}, %g, %offset, {d}] : {kv}"""
        return read + (f"\n        %{name} = {widen}" if widen else "")

    row = f"""%last_i32 = tensor.extract %positions[%t] : {call.type_of("positions")}
    %last = arith.index_cast %last_i32 : i32 to index
    %end = arith.addi %last, %c1 : index
    %unclamped = arith.subi %end, %window : index
    %first = arith.maxsi %unclamped, %c0 : index"""
    sequence = f"""%s_i32 = tensor.extract %token_seq[%t] : {call.type_of("token_seq")}
    %s = arith.index_cast %s_i32 : i32 to index
    %g = arith.divui %h, %group : index"""
    return f"""
{call.signature(symbol)} {{
  %c0 = arith.constant 0 : index
  %c1 = arith.constant 1 : index
  %ps = arith.constant {page_size} : index
  %group = arith.constant {num_heads // kv.shape[2]} : index
  %window = arith.constant {window or 2**31 - 1} : index
  %head_dim = arith.constant {head_dim} : index
  %zero = arith.constant 0.0 : f32
  %lowest = arith.constant -3.0e38 : f32
  %scale = arith.constant {literal(call.attrs["scale"])} : f32
  %t_size = tensor.dim %q, %c0 : {q}
  %p_size = tensor.dim %page_table, %c1 : {table}
  %c_size = arith.muli %p_size, %ps : index

  %scores_empty = tensor.empty({dyn_tc}) : {scores}
  %scores = linalg.generic {{
      indexing_maps = [affine_map<(t, h, j) -> (t, h, j)>],
      iterator_types = ["parallel", "parallel", "parallel"]
  }} outs(%scores_empty : {scores}) {{
  ^bb0(%o: f32):
    %t = linalg.index 0 : index
    %h = linalg.index 1 : index
    %j = linalg.index 2 : index
    {row}
    {sequence}
    %from_first = arith.cmpi sge, %j, %first : index
    %to_last = arith.cmpi sle, %j, %last : index
    %attends = arith.andi %from_first, %to_last : i1
    %d_end = arith.select %attends, %head_dim, %c0 : index
    %dot = scf.for %d = %c0 to %d_end step %c1 iter_args(%acc = %zero) -> (f32) {{
        {read_kv("k", "%c0", "%d")}
        %q_d = tensor.extract %q[%t, %h, %d] : {q}
        %product = arith.mulf %q_d, %k : f32
        %next = arith.addf %acc, %product : f32
        scf.yield %next : f32
    }}
    %score = arith.mulf %dot, %scale : f32
    linalg.yield %score : f32
  }} -> {scores}

  %stats_empty = tensor.empty({dyn_t}) : {stats}
  %max, %sum = linalg.generic {{
      indexing_maps = [affine_map<(t, h) -> (t, h)>, affine_map<(t, h) -> (t, h)>],
      iterator_types = ["parallel", "parallel"]
  }} outs(%stats_empty, %stats_empty : {stats}, {stats}) {{
  ^bb0(%o_max: f32, %o_sum: f32):
    %t = linalg.index 0 : index
    %h = linalg.index 1 : index
    {row}
    %row_max = scf.for %j = %first to %end step %c1 iter_args(%acc = %lowest) -> (f32) {{
        %x = tensor.extract %scores[%t, %h, %j] : {scores}
        %next = arith.maximumf %acc, %x : f32
        scf.yield %next : f32
    }}
    %row_sum = scf.for %j = %first to %end step %c1 iter_args(%acc = %zero) -> (f32) {{
        %x = tensor.extract %scores[%t, %h, %j] : {scores}
        %below = arith.subf %x, %row_max : f32
        %e = math.exp %below : f32
        %next = arith.addf %acc, %e : f32
        scf.yield %next : f32
    }}
    linalg.yield %row_max, %row_sum : f32, f32
  }} -> ({stats}, {stats})

  %y_empty = tensor.empty({dyn_t}) : {q}
  %y = linalg.generic {{
      indexing_maps = [affine_map<(t, h, d) -> (t, h)>, affine_map<(t, h, d) -> (t, h)>,
                       affine_map<(t, h, d) -> (t, h, d)>],
      iterator_types = ["parallel", "parallel", "parallel"]
  }} ins(%max, %sum : {stats}, {stats}) outs(%y_empty : {q}) {{
  ^bb0(%row_max: f32, %row_sum: f32, %o: f32):
    %t = linalg.index 0 : index
    %h = linalg.index 1 : index
    %d = linalg.index 2 : index
    {row}
    {sequence}
    %total = scf.for %j = %first to %end step %c1 iter_args(%acc = %zero) -> (f32) {{
        {read_kv("v", "%c1", "%d")}
        %x = tensor.extract %scores[%t, %h, %j] : {scores}
        %below = arith.subf %x, %row_max : f32
        %e = math.exp %below : f32
        %product = arith.mulf %e, %v : f32
        %next = arith.addf %acc, %product : f32
        scf.yield %next : f32
    }}
    %mean = arith.divf %total, %row_sum : f32
    linalg.yield %mean : f32
  }} -> {q}
  return %y : {q}
}}
"""
