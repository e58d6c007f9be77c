"""llm.append_kv: write the keys and values of this step's tokens into their pages.

    y = kv, but  y[slots[t] / ps, 0, :, slots[t] % ps, :] = k[t]
                 y[slots[t] / ps, 1, :, slots[t] % ps, :] = v[t]     as kv's format stores them

Shape legend: T tokens, N pages of the pool, H KV heads, ps tokens a page, D head dim; _D: D, or
D + 4 of int8 (kv_formats.py).
One page, of one layer:

    [0] K: head 0: token 0 [D], token 1 [D], … token ps-1 [D];  head 1: …
    [1] V: the same

The op is functional, as export demands, yet must cost nothing like a copy of
`kv`: the result takes the operand's storage when `kv` is an argument of the
exported function, is written once, is not returned, and is read afterwards
only through the result.  That is copy elision, so the compiler checks the
stream IR (`--compile-to=stream`: no copy or allocation as large as `kv`).

Slots are distinct, but any number of padding tokens may share those of page 0,
whose contents nobody reads.
"""

from __future__ import annotations

from llmir.dialect_ext.base import Array, Call, Lowering, Op, Operand
from llmir.dialect_ext.c_pages import append_lowering
from llmir.dialect_ext.gpu_pages import append_lowerings
from llmir.dialect_ext.kv_bytes import int8_scale, narrow_fp8, narrow_int8
from llmir.dialect_ext.kv_formats import (
    KV_OPERAND,
    SCALE_BYTES,
    KvPages,
    check_kv,
    kv_pages,
    stored,
)
from llmir.dialect_ext.types import TensorType, is_static
from llmir.dialect_ext.workgroups import Workgroups, cpu_only, indented
from llmir.targets import Target


class AppendKv(Op):
    """kv f32|f16|bf16|i8[N, 2, H, ps, _D], k f32[T, H, D], v f32[T, H, D], slots i32[T] → kv."""

    name = "append_kv"
    pure = False
    operands = (
        KV_OPERAND,
        Operand(name="k", dims=("T", "H", "D"), dtypes=("f32",)),
        Operand(name="v", dims=("T", "H", "D"), dtypes=("f32",)),
        Operand(name="slots", dims=("T",), dtypes=("i32",)),
    )

    def check(self, call: Call) -> None:
        check_kv(call)

    def result_types(self, call: Call) -> tuple[TensorType, ...]:
        kv = call.type_of("kv")
        return (kv,)

    def reference(self, kv: Array, k: Array, v: Array, slots: Array) -> Array:
        y, page_size = kv.copy(), kv.shape[3]
        for t, slot in enumerate(slots):
            page, offset = divmod(int(slot), page_size)
            y[page, 0, :, offset] = stored(k[t], kv)
            y[page, 1, :, offset] = stored(v[t], kv)
        return y

    @property
    def lowerings(self) -> tuple[Lowering, ...]:
        return (
            append_lowering(),
            *append_lowerings(),
            Lowering(provider="portable", variant="rows", supports=cpu_only, emit=_emit_rows),
            Lowering(
                provider="portable", variant="scatter", supports=not_f16_on_vulkan,
                emit=_emit_scatter,
            ),
        )  # fmt: skip


def not_f16_on_vulkan(call: Call, target: Target) -> str | None:
    """A `supports` for ops on kv: every target, but for pages of f16 on Vulkan."""
    # Seen with Mesa 22.3's llmvpipe, without any error; bf16 and f32 are right there.
    if target.kind == "vulkan" and call.type_of("kv").dtype == "f16":
        return "f16 KV pages compute wrong results on a Vulkan driver; use f32 or bf16"
    return None


def _emit_rows(call: Call, symbol: str) -> str:
    """One dispatch on kv's own storage; a workgroup writes one token's K and V.

    Calls of T = 1, 32, 512 (3 heads of 64, two Zen 4 cores) take 0.027, 0.028 and
    0.054 ms, the scatter's 0.036, 0.047 and 0.130; an empty one takes 0.025.
    """
    kv, k, pages = call.type_of("kv"), call.type_of("k"), kv_pages(call)
    heads, page_size, head_dim = pages.heads, pages.page_size, pages.dim
    wide, narrow = f"vector<{head_dim}xf32>", f"vector<{head_dim}x{kv.dtype}>"
    row = f"tensor<1x1x1x1x{head_dim}x{kv.dtype}>"
    scale_row = f"tensor<1x1x1x1x{SCALE_BYTES}xi8>"
    grid = Workgroups(call=call, reads=("k", "v", "slots"), count=("T",), tied="kv")

    def write(name: str, which: int) -> list[str]:
        lines = [
            f"%{name}_wide = vector.transfer_read %{name}[%wg0, %h, %c0], %zero "
            f"{{in_bounds = [true]}} : {k}, {wide}"
        ]
        if kv.dtype == "i8":
            lines += _narrow_row(name, pages)
        elif kv.dtype != "f32":
            lines.append(f"%{name}_row = arith.truncf %{name}_wide : {wide} to {narrow}")
        if pages.format == "int8":
            lines += [
                f"%{name}_scale_empty = tensor.empty() : {scale_row}",
                f"%{name}_scale_row = vector.transfer_write %{name}_scale_bytes, "
                f"%{name}_scale_empty[%c0, %c0, %c0, %c0, %c0] {{in_bounds = [true]}} "
                f": vector<{SCALE_BYTES}xi8>, {scale_row}",
                grid.store(
                    f"%{name}_scale_row",
                    scale_row,
                    ["%page", which, "%h", "%offset", head_dim],
                    [1, 1, 1, 1, SCALE_BYTES],
                ),
            ]
        vector = f"%{name}_wide" if kv.dtype == "f32" else f"%{name}_row"
        return [
            *lines,
            f"%{name}_empty = tensor.empty() : {row}",
            f"%{name}_page = vector.transfer_write {vector}, "
            f"%{name}_empty[%c0, %c0, %c0, %c0, %c0] {{in_bounds = [true]}} : {narrow}, {row}",
            grid.store(
                f"%{name}_page", row, ["%page", which, "%h", "%offset", 0], [1, 1, 1, 1, head_dim]
            ),
        ]

    body = f"""
    %c0 = arith.constant 0 : index
    %c1 = arith.constant 1 : index
    %heads = arith.constant {heads} : index
    %ps = arith.constant {page_size} : index
    %zero = arith.constant 0.0 : f32
    %slot_i32 = tensor.extract %slots[%wg0] : {call.type_of("slots")}
    %slot = arith.index_cast %slot_i32 : i32 to index
    %page = arith.divui %slot, %ps : index
    %offset = arith.remui %slot, %ps : index
    scf.for %h = %c0 to %heads step %c1 {{
      {indented(6, write("k", 0))}
      {indented(6, write("v", 1))}
    }}
"""
    return grid.emit(symbol, body)


def _narrow_row(name: str, pages: KvPages) -> list[str]:
    """`%name_row` of the vector `%name_wide`; of int8 `%name_scale_bytes` as well."""
    dim = pages.dim
    wide = f"vector<{dim}xf32>"
    if pages.format == "fp8":
        return narrow_fp8(f"{name}_row", f"{name}_wide", dim)
    scale = f"{name}_scale"
    return [
        f"%{name}_sizes = math.absf %{name}_wide : {wide}",
        f"%{name}_largest = vector.reduction <maximumf>, %{name}_sizes : {wide} into f32",
        *int8_scale(scale, f"{name}_largest"),
        f"%{name}_divisors = vector.broadcast %{scale}_divisor : f32 to {wide}",
        *narrow_int8(f"{name}_row", f"{name}_wide", f"{name}_divisors", dim),
        f"%{scale}_vector = vector.broadcast %{scale} : f32 to vector<1xf32>",
        f"%{scale}_bytes = vector.bitcast %{scale}_vector : vector<1xf32> to "
        f"vector<{SCALE_BYTES}xi8>",
    ]


def _emit_scatter(call: Call, symbol: str) -> str:
    """R = T * 2 * H rows [R, D], which rows of kv they are [R, 1], and a scatter of rows.

    Three dispatches, the second the same for every layer.  With its operands as
    [T, 2, H, …], the scatter wrote wrong rows on Vulkan (llvmpipe; bf16, D = 24),
    with no error, and IREE takes a reshape back to that form: so the rows are
    made flat.  `unique_indices` is what lets them be written in parallel; two
    padding rows of one slot may race, and nobody reads them.  Of int8 the largest
    number of each row is found first, [R].
    """
    kv, k, v, slots = (call.type_of(n) for n in ("kv", "k", "v", "slots"))
    tokens, heads, page_size, row_dim = k.shape[0], *kv.shape[2:]
    pages = kv_pages(call)
    num_rows = tokens * 2 * heads if is_static(tokens) else None
    num_kv_rows = kv.shape[0] * 2 * heads * page_size if is_static(kv.shape[0]) else None
    rows, kv_rows = (TensorType((n, row_dim), kv.dtype) for n in (num_rows, num_kv_rows))
    places = TensorType((num_rows, 1), "i32")
    dyn = "" if is_static(tokens) else "%r_size"
    narrow = "" if kv.dtype == "f32" else f"%n = arith.truncf %w : f32 to {kv.dtype}"
    if pages.format == "fp8":
        narrow = indented(4, narrow_fp8("n", "w"))
    elif pages.format == "int8":
        narrow = indented(4, _narrow_element())
    largest = TensorType((num_rows,), "f32")
    kv_shape = ", ".join(str(d) if is_static(d) else "%n_size" for d in kv.shape)
    which = """%t = arith.divui %r, %rows_of_token : index
    %in_token = arith.remui %r, %rows_of_token : index
    %x = arith.divui %in_token, %heads : index
    %h = arith.remui %in_token, %heads : index"""

    def read(d: str) -> str:
        return f"""%from_k = tensor.extract %k[%t, %h, {d}] : {k}
    %from_v = tensor.extract %v[%t, %h, {d}] : {v}
    %is_k = arith.cmpi eq, %x, %c0 : index
    %w = arith.select %is_k, %from_k, %from_v : f32"""

    find_largest, maps, ins, block_in, inside = "", "", "", "", ""
    if pages.format == "int8":
        # What is read for the scale's bytes is not taken, but must be there.
        inside = f"""%d_last = arith.constant {pages.dim - 1} : index
    %d_inside = arith.minui %d, %d_last : index"""
        maps, ins = "affine_map<(r, d) -> (r)>, ", f"ins(%largest : {largest}) "
        block_in = "%most: f32, "
        find_largest = f"""%largest_empty = tensor.empty({dyn}) : {largest}
  %largest = linalg.generic {{
      indexing_maps = [affine_map<(r) -> (r)>], iterator_types = ["parallel"]
  }} outs(%largest_empty : {largest}) {{
  ^bb0(%o: f32):
    %r = linalg.index 0 : index
    {which}
    %zero = arith.constant 0.0 : f32
    %most = scf.for %d = %c0 to %head_dim step %c1 iter_args(%acc = %zero) -> (f32) {{
      {read("%d")}
      %size = math.absf %w : f32
      %next = arith.maximumf %acc, %size : f32
      scf.yield %next : f32
    }}
    linalg.yield %most : f32
  }} -> {largest}"""
    return f"""
{call.signature(symbol)} {{
  %c0 = arith.constant 0 : index
  %c1 = arith.constant 1 : index
  %head_dim = arith.constant {pages.dim} : index
  %heads = arith.constant {heads} : index
  %rows_of_token = arith.constant {2 * heads} : index
  %ps = arith.constant {page_size} : index
  %t_size = tensor.dim %slots, %c0 : {slots}
  %r_size = arith.muli %t_size, %rows_of_token : index
  %n_size = tensor.dim %kv, %c0 : {kv}
  {find_largest}
  %rows_empty = tensor.empty({dyn}) : {rows}
  %rows = linalg.generic {{
      indexing_maps = [{maps}affine_map<(r, d) -> (r, d)>],
      iterator_types = ["parallel", "parallel"]
  }} {ins}outs(%rows_empty : {rows}) {{
  ^bb0({block_in}%o: {kv.dtype}):
    %r = linalg.index 0 : index
    %d = linalg.index 1 : index
    {which}
    {inside}
    {read("%d_inside" if inside else "%d")}
    {narrow}
    linalg.yield {"%n" if narrow else "%w"} : {kv.dtype}
  }} -> {rows}
  %places_empty = tensor.empty({dyn}) : {places}
  %places = linalg.generic {{
      indexing_maps = [affine_map<(r, i) -> (r, i)>], iterator_types = ["parallel", "parallel"]
  }} outs(%places_empty : {places}) {{
  ^bb0(%o: i32):
    %r = linalg.index 0 : index
    {which}
    %slot_i32 = tensor.extract %slots[%t] : {slots}
    %slot = arith.index_cast %slot_i32 : i32 to index
    %page = arith.divui %slot, %ps : index
    %offset = arith.remui %slot, %ps : index
    %page_rows = arith.muli %page, %rows_of_token : index
    %head_rows = arith.addi %page_rows, %in_token : index
    %first = arith.muli %head_rows, %ps : index
    %row = arith.addi %first, %offset : index
    %row_i32 = arith.index_cast %row : index to i32
    linalg.yield %row_i32 : i32
  }} -> {places}
  %kv_rows = tensor.collapse_shape %kv [[0, 1, 2, 3], [4]] : {kv} into {kv_rows}
  %y_rows = iree_linalg_ext.scatter dimension_map = [0] unique_indices(true)
      ins(%rows, %places : {rows}, {places}) outs(%kv_rows : {kv_rows}) {{
  ^bb0(%new: {kv.dtype}, %old: {kv.dtype}):
    iree_linalg_ext.yield %new : {kv.dtype}
  }} -> {kv_rows}
  %y = tensor.expand_shape %y_rows [[0, 1, 2, 3], [4]] output_shape [{kv_shape}]
      : {kv_rows} into {kv}
  return %y : {kv}
}}
"""


def _narrow_element() -> list[str]:
    """`%n`: byte %d of the int8 row with `%most` = max |x|, whose number there is `%w`."""
    return [
        *int8_scale("scale", "most"),
        *narrow_int8("q", "w", "scale_divisor"),
        "%scale_bits = arith.bitcast %scale : f32 to i32",
        "%byte_at = arith.subi %d, %head_dim : index",
        "%byte_at_i32 = arith.index_cast %byte_at : index to i32",
        "%eight = arith.constant 8 : i32",
        "%wanted_shift = arith.muli %byte_at_i32, %eight : i32",
        # Before the scale's bytes nobody takes the result; a shift must be less than 32 there too.
        "%no_shift = arith.constant 0 : i32",
        "%is_q = arith.cmpi ult, %d, %head_dim : index",
        "%shift = arith.select %is_q, %no_shift, %wanted_shift : i32",
        "%scale_there = arith.shrui %scale_bits, %shift : i32",
        "%scale_byte = arith.trunci %scale_there : i32 to i8",
        "%n = arith.select %is_q, %q, %scale_byte : i8",
    ]
