"""llm.paged_attention as three all-parallel generics: the form for every target.

    scores [T, Hq, C], their max and sum [T, Hq] each, the result;  C = P * ps

Shape legend: T tokens, Hq query heads, H KV heads, D head dim, ps tokens a page,
P page-table columns, N pages of the pool, S sequences.

Bodies that loop with `scf.for` and read by `tensor.extract` are what compiles
for Vulkan, Metal, CUDA and ROCm alike: a generic with a reduction over extracted
values needs workgroup memory, which Metal and Vulkan refuse.  On two Zen 4
cores (9 heads of 64, 3 KV heads, one layer) T = 512 takes 295 ms at context 512;
paged_attention_vectors.py is the form for CPUs.
"""

from __future__ import annotations

from llmir.dialect_ext.base import Call, literal
from llmir.dialect_ext.kv_bytes import read_scale, widen
from llmir.dialect_ext.kv_formats import kv_pages
from llmir.dialect_ext.types import TensorType, is_static
from llmir.dialect_ext.workgroups import indented


def emit_loops(call: Call, symbol: str) -> str:
    """The function.  Scores outside a row's positions are never computed nor read."""
    q, kv, table = call.type_of("q"), call.type_of("kv"), call.type_of("page_table")
    pages = kv_pages(call)
    tokens, num_heads, head_dim = q.shape
    page_size, window = kv.shape[3], int(call.attrs["window"])
    columns = table.shape[1]
    scores = TensorType(
        (tokens, num_heads, columns * page_size if is_static(columns) else None), "f32"
    )
    stats = TensorType((tokens, num_heads), "f32")
    dyn_t = "" if is_static(tokens) else "%t_size"
    dyn_tc = ", ".join(filter(None, (dyn_t, "" if is_static(columns) else "%c_size")))

    def read_kv(name: str, which: str, d: str) -> str:
        """`%name`: element d of K (%c0) or V (%c1) at position %j of sequence %s, head %g."""
        raw = name if pages.format == "f32" else "raw"
        read = f"""{place("%j")}
        %{raw} = tensor.extract %kv[%page, {which}, %g, %offset, {d}] : {kv}"""
        if pages.format in ("f16", "bf16"):
            read += f"\n        %{name} = arith.extf %raw : {kv.dtype} to f32"
        elif kv.dtype == "i8":
            read += "\n        " + indented(8, widen(name, "raw", pages.format))
        return read

    def place(j: str) -> str:
        return f"""%column = arith.divui {j}, %ps : index
        %page_i32 = tensor.extract %page_table[%s, %column] : {table}
        %page = arith.index_cast %page_i32 : i32 to index
        %offset = arith.remui {j}, %ps : index"""

    read_v, scale_dot = read_kv("v", "%c1", "%d"), "%score_raw = arith.mulf %dot, %scale : f32"
    if pages.format == "int8":
        # Of a position that is not attended to, the row's own scale: nobody reads the score.
        scale_dot = f"""%j_there = arith.select %attends, %j, %last : index
        {place("%j_there")}
        {indented(8, read_scale("k_scale", kv, "%page, %c0, %g, %offset", pages.dim))}
        %dot_scaled = arith.mulf %dot, %k_scale : f32
        %score_raw = arith.mulf %dot_scaled, %scale : f32"""
        read_v = f"""{read_kv("v_int", "%c1", "%d")}
        {indented(8, read_scale("v_scale", kv, "%page, %c1, %g, %offset", pages.dim))}
        %v = arith.mulf %v_int, %v_scale : f32"""

    cap, softcap = "", float(call.attrs["softcap"])
    if softcap:
        cap = f"""%cap = arith.constant {literal(softcap)} : f32
    %share = arith.divf %score_raw, %cap : f32
    %tanh = math.tanh %share : f32
    %score = arith.mulf %tanh, %cap : f32"""
    sinks, read_sink, add_sink = call.operand("sinks"), "", ""
    if sinks is not None:
        read_sink = f"%sink = tensor.extract %sinks[%h] : {sinks}"
        add_sink = """%sink_below = arith.subf %sink, %row_max : f32
    %sink_e = math.exp %sink_below : f32"""
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
  %scale = arith.constant {literal(float(call.attrs["scale"]))} : f32
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
    {scale_dot}
    {cap}
    linalg.yield {"%score" if cap else "%score_raw"} : f32
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
    {read_sink}
    %row_max = scf.for %j = %first to %end step %c1
        iter_args(%acc = {"%sink" if sinks else "%lowest"}) -> (f32) {{
        %x = tensor.extract %scores[%t, %h, %j] : {scores}
        %next = arith.maximumf %acc, %x : f32
        scf.yield %next : f32
    }}
    {add_sink}
    %row_sum = scf.for %j = %first to %end step %c1
        iter_args(%acc = {"%sink_e" if sinks else "%zero"}) -> (f32) {{
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
        {read_v}
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
