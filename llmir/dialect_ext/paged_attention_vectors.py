"""llm.paged_attention for CPUs: online softmax over blocks of positions, in vectors.

One workgroup computes one token's result for up to four query heads that share
a KV head.  It walks blocks of B positions (B = ps, or 16 of a page of 32) that
start at multiples of B, whatever is in the batch:

    s[j] = q · K[j]                    for the block's j that the token attends to
    m' = max(m, max_j s[j]);  p[j] = exp(s[j] - m');  r = exp(m - m')
    l  = l * r + Σ_j p[j];    acc = acc * r + Σ_j p[j] * V[j];      y = acc / l

(Milakov & Gimelshein, 2018; Dao et al., 2022.)  Positions outside the token's
own are not read: their s is the lowest number and their p is 0.  So each row is
a computation of its own with its order fixed by this text, and no score reaches
memory.

Shape legend: D head dim, W lanes of a dot product, B positions of a block.

On two Zen 4 cores, 9 heads of 64, 3 KV heads, ps 16, one layer, best of 30:

    T × context                512 × 512    1 × 512    32 × 128    1 × 8192
    this form                     2.8 ms    0.09 ms     0.26 ms     0.5 ms
    one head a workgroup          3.7       0.10        0.32        0.5
    sums by vector.reduction      9.0       0.09        0.31        0.9
    paged_attention_loops       295         1.4         9.3        21

(an empty call is 0.03 ms of each).  IREE turns a `vector.reduction` of sums into
one addition per lane, so sums are written out as halvings.  Two-dimensional
vectors do not compile here: nothing in IREE's pipeline for dispatches without a
structured op unrolls a `vector.fma` of them.  LLVM's unroller and vectorisers
change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmir.dialect_ext.base import Call, literal
from llmir.dialect_ext.kv_bytes import widen
from llmir.dialect_ext.kv_formats import SCALE_BYTES, kv_pages
from llmir.dialect_ext.workgroups import Workgroups, indented, sum_lanes

_MAX_HEADS = 4  # query heads a workgroup holds, and …
_MAX_LANES = 256  # … the floats of its accumulators: half of the 32 AVX-512 registers


def emit_vectors(call: Call, symbol: str) -> str:
    """The function, for any D and any page size of the op."""
    q, kv = call.type_of("q"), call.type_of("kv")
    _, num_heads, D = q.shape
    pages = kv_pages(call)
    page_size, is_int8 = pages.page_size, pages.format == "int8"
    group = num_heads // kv.shape[2]
    held = max(
        n for n in range(1, _MAX_HEADS + 1) if group % n == 0 and (n == 1 or n * D <= _MAX_LANES)
    )
    B = min(page_size, 16)
    W = next(w for w in (16, 8, 4, 2, 1) if D % w == 0)
    chunks = range(0, D, W)
    vec_D, vec_B, vec_W = f"vector<{D}xf32>", f"vector<{B}xf32>", f"vector<{W}xf32>"
    row = f"tensor<1x{held}x{D}xf32>"
    carried = ", ".join([f"f32, f32, {vec_D}"] * held)
    sinks, softcap = call.operand("sinks"), float(call.attrs["softcap"])
    grid = Workgroups(
        call=call,
        reads=(
            *("q", "kv", "page_table", "token_seq", "positions"),
            *([] if sinks is None else ["sinks"]),
        ),
        count=(num_heads // held, "T"),
    )

    def each(*lines: str) -> list[str]:
        """The lines once for every head held, `@` standing for its number."""
        return [line.replace("@", str(h)) for h in range(held) for line in lines]

    def listed(item: str) -> str:
        """The item once for every head held, `@` standing for its number."""
        return ", ".join(each(item))

    def read_kv(name: str, which: str, d: str, lanes: int) -> list[str]:
        """`%name`: `lanes` elements from d on of K (%c0) or V (%c1) at offset %o of %page."""
        raw = f"vector<{lanes}x{kv.dtype}>"
        read = (
            f"vector.transfer_read %kv[%page, {which}, %g, %o, {d}], %kv_zero "
            f"{{in_bounds = [true]}} : {kv}, {raw}"
        )
        if kv.dtype == "f32":
            return [f"%{name} = {read}"]
        if kv.dtype == "i8":
            return [f"%{name}_raw = {read}", *widen(name, f"{name}_raw", pages.format, lanes)]
        wider = f"arith.extf %{name}_raw : {raw} to vector<{lanes}xf32>"
        return [f"%{name}_raw = {read}", f"%{name} = {wider}"]

    def read_scale(name: str, which: str) -> list[str]:
        """`%name`: the scale of K or V at offset %o of %page."""
        raw = f"vector<{SCALE_BYTES}xi8>"
        return [
            f"%{name}_at = arith.constant {D} : index",
            f"%{name}_raw = vector.transfer_read %kv[%page, {which}, %g, %o, %{name}_at], %kv_zero "
            f"{{in_bounds = [true]}} : {kv}, {raw}",
            f"%{name}_bits = vector.bitcast %{name}_raw : {raw} to vector<1xf32>",
            f"%{name} = vector.extract %{name}_bits[0] : f32 from vector<1xf32>",
        ]

    load_q = [
        line
        for c in chunks
        for line in (
            f"%q@_{c}_raw = vector.transfer_read %q[%t, %h@, %d{c}], %zero "
            f"{{in_bounds = [true]}} : {q}, {vec_W}",
            f"%q@_{c} = arith.mulf %q@_{c}_raw, %scale : {vec_W}",
        )
    ]
    load_k = [line for c in chunks for line in read_kv(f"k{c}", "%c0", f"%d{c}", W)]
    load_v = read_kv("v", "%c1", "%c0", D)
    dot = _dot("dot@", chunks, W)
    if is_int8:
        load_k += read_scale("k_scale", "%c0")
        dot = [*_dot("sum@", chunks, W), "%dot@ = arith.mulf %sum@, %k_scale : f32"]
        load_v = [
            *read_kv("v_int", "%c1", "%c0", D),
            *read_scale("v_scale", "%c1"),
            f"%v_scale_D = vector.broadcast %v_scale : f32 to {vec_D}",
            f"%v = arith.mulf %v_int, %v_scale_D : {vec_D}",
        ]
    insert = f"%s@_next = vector.insert %dot@, %s@ [%i] : f32 into {vec_B}"
    accumulate = [
        f"%p@_i = vector.extract %p@[%i] : f32 from {vec_B}",
        f"%p@_D = vector.broadcast %p@_i : f32 to {vec_D}",
        f"%a@_next = vector.fma %p@_D, %v, %a@ : {vec_D}",
    ]
    scores = "capped@" if softcap else "scores#@"
    # A sink is a score of no value that was there before.
    start = "%m@ = %lowest, %l@ = %zero, %acc@ = %zero_D"
    read_sink: list[str] = []
    if sinks is not None:
        start = "%m@ = %sink@, %l@ = %one, %acc@ = %zero_D"
        read_sink = each(f"%sink@ = tensor.extract %sinks[%h@] : {sinks}")
    body = f"""
    %c0 = arith.constant 0 : index
    %c1 = arith.constant 1 : index
    %block = arith.constant {B} : index
    %ps = arith.constant {page_size} : index
    %group = arith.constant {group} : index
    %held = arith.constant {held} : index
    %window = arith.constant {call.attrs["window"] or 2**31 - 1} : index
    %zero = arith.constant 0.0 : f32
    %one = arith.constant 1.0 : f32
    %kv_zero = arith.constant {"0" if kv.dtype == "i8" else "0.0"} : {kv.dtype}
    %lowest = arith.constant -3.0e38 : f32
    %scale = arith.constant dense<{literal(float(call.attrs["scale"]))}> : {vec_W}
    %lowest_B = arith.constant dense<-3.0e38> : {vec_B}
    %zero_D = arith.constant dense<0.0> : {vec_D}
    {indented(4, [f"%d{c} = arith.constant {c} : index" for c in chunks])}
    {indented(4, each("%n@ = arith.constant @ : index"))}
    %t = arith.addi %wg1, %c0 : index
    %h_first = arith.muli %wg0, %held : index
    %g = arith.divui %h_first, %group : index
    {indented(4, each("%h@ = arith.addi %h_first, %n@ : index"))}
    {indented(4, each(*load_q))}
    {indented(4, read_sink)}
    %s_i32 = tensor.extract %token_seq[%t] : {call.type_of("token_seq")}
    %s = arith.index_cast %s_i32 : i32 to index
    %last_i32 = tensor.extract %positions[%t] : {call.type_of("positions")}
    %last = arith.index_cast %last_i32 : i32 to index
    %end = arith.addi %last, %c1 : index
    %unclamped = arith.subi %end, %window : index
    %first = arith.maxsi %unclamped, %c0 : index
    %b_first = arith.divui %first, %block : index
    %b_last = arith.divui %last, %block : index
    %b_end = arith.addi %b_last, %c1 : index

    %r:{3 * held} = scf.for %b = %b_first to %b_end step %c1
        iter_args({listed(start)}) -> ({carried}) {{
      %j = arith.muli %b, %block : index
      %column = arith.divui %j, %ps : index
      %o_block = arith.remui %j, %ps : index
      %page_i32 = tensor.extract %page_table[%s, %column] : {call.type_of("page_table")}
      %page = arith.index_cast %page_i32 : i32 to index
      %to_first = arith.subi %first, %j : index
      %i_first = arith.maxsi %to_first, %c0 : index
      %to_end = arith.subi %end, %j : index
      %i_end = arith.minsi %to_end, %block : index
      %scores:{held} = scf.for %i = %i_first to %i_end step %c1
          iter_args({listed("%s@ = %lowest_B")}) -> ({", ".join([vec_B] * held)}) {{
        %o = arith.addi %o_block, %i : index
        {indented(8, load_k)}
        {indented(8, each(*dot, insert))}
        scf.yield {listed("%s@_next")} : {", ".join([vec_B] * held)}
      }}
      {indented(6, each(*_capped(B, softcap), *_softmax(B, D, scores)))}
      %sums:{held} = scf.for %i = %i_first to %i_end step %c1
          iter_args({listed("%a@ = %acc@_scaled")}) -> ({", ".join([vec_D] * held)}) {{
        %o = arith.addi %o_block, %i : index
        {indented(8, load_v)}
        {indented(8, each(*accumulate))}
        scf.yield {listed("%a@_next")} : {", ".join([vec_D] * held)}
      }}
      scf.yield {listed("%m@_next, %l@_next, %sums#@")} : {carried}
    }}

    %row_empty = tensor.empty() : {row}
    {indented(4, _rows(held, D, row))}
    {grid.store(f"%row{held - 1}", row, ["%t", "%h_first", 0], [1, held, D])}
"""
    return grid.emit(symbol, body)


def _dot(name: str, chunks: Sequence[int], W: int) -> list[str]:
    """`%name` = q · k: one fused multiply-add per chunk, then the lanes halved."""
    vec_W = f"vector<{W}xf32>"
    lines = [f"%{name}_{chunks[0]} = arith.mulf %q@_{chunks[0]}, %k{chunks[0]} : {vec_W}"]
    lines += [
        f"%{name}_{c} = vector.fma %q@_{c}, %k{c}, %{name}_{c - W} : {vec_W}" for c in chunks[1:]
    ]
    return lines + sum_lanes(name, f"{name}_{chunks[-1]}", W)


def _capped(B: int, softcap: float) -> list[str]:
    """`%capped@`: cap tanh(s / cap) of the scores, those of hidden positions as they are."""
    vec_B = f"vector<{B}xf32>"
    if not softcap:
        return []
    return [
        f"%cap@ = arith.constant dense<{literal(softcap)}> : {vec_B}",
        f"%share@ = arith.divf %scores#@, %cap@ : {vec_B}",
        f"%tanh@ = math.tanh %share@ : {vec_B}",
        f"%seen@ = arith.mulf %tanh@, %cap@ : {vec_B}",
        f"%hides@ = arith.cmpf oeq, %scores#@, %lowest_B : {vec_B}",
        f"%capped@ = arith.select %hides@, %lowest_B, %seen@ : vector<{B}xi1>, {vec_B}",
    ]


def _softmax(B: int, D: int, scores: str) -> list[str]:
    """m', p, l' and the rescaled accumulator of the module's formula, from `scores`."""
    vec_B, vec_D = f"vector<{B}xf32>", f"vector<{D}xf32>"
    return [
        f"%m@_block = vector.reduction <maximumf>, %{scores} : {vec_B} into f32",
        "%m@_next = arith.maximumf %m@, %m@_block : f32",
        f"%m@_B = vector.broadcast %m@_next : f32 to {vec_B}",
        f"%s@_below = arith.subf %{scores}, %m@_B : {vec_B}",
        f"%p@ = math.exp %s@_below : {vec_B}",
        "%m@_below = arith.subf %m@, %m@_next : f32",
        "%r@ = math.exp %m@_below : f32",
        *sum_lanes("l@_block", "p@", B),
        "%l@_next = math.fma %l@, %r@, %l@_block : f32",
        f"%r@_D = vector.broadcast %r@ : f32 to {vec_D}",
        f"%acc@_scaled = arith.mulf %acc@, %r@_D : {vec_D}",
    ]


def _rows(held: int, D: int, row: str) -> list[str]:
    """acc / l of each head, as `%row{held-1}` of type `row`; `%r` is m, l, acc per head."""
    lines = []
    for h in range(held):
        before = f"%row{h - 1}" if h else "%row_empty"
        lines += [
            f"%l{h}_D = vector.broadcast %r#{3 * h + 1} : f32 to vector<{D}xf32>",
            f"%y{h} = arith.divf %r#{3 * h + 2}, %l{h}_D : vector<{D}xf32>",
            f"%row{h} = vector.transfer_write %y{h}, {before}[%c0, %n{h}, %c0] "
            f"{{in_bounds = [true]}} : vector<{D}xf32>, {row}",
        ]
    return lines
