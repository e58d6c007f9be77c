"""llm.append_kv: write the keys and values of this step's tokens into their pages.

    y = kv, but  y[slots[t] / ps, 0, :, slots[t] % ps, :] = k[t]
                 y[slots[t] / ps, 1, :, slots[t] % ps, :] = v[t]     rounded to kv's dtype

Shape legend: T tokens, N pages of the pool, H KV heads, ps tokens a page, D head dim.
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
from llmir.dialect_ext.types import TensorType, is_static
from llmir.dialect_ext.workgroups import Workgroups, cpu_only, indented
from llmir.targets import Target


class AppendKv(Op):
    """kv f32|f16|bf16[N, 2, H, ps, D], k f32[T, H, D], v f32[T, H, D], slots i32[T] → kv."""

    name = "append_kv"
    pure = False
    operands = (
        Operand(name="kv", dims=("N", 2, "H", "ps", "D"), dtypes=("f32", "f16", "bf16")),
        Operand(name="k", dims=("T", "H", "D"), dtypes=("f32",)),
        Operand(name="v", dims=("T", "H", "D"), dtypes=("f32",)),
        Operand(name="slots", dims=("T",), dtypes=("i32",)),
    )

    def check(self, call: Call) -> None:
        kv = call.type_of("kv")
        self.expect(
            all(is_static(d) for d in kv.shape[1:]), f"H, ps and D of kv must be static, got {kv}"
        )

    def result_types(self, call: Call) -> tuple[TensorType, ...]:
        kv = call.type_of("kv")
        return (kv,)

    def reference(self, kv: Array, k: Array, v: Array, slots: Array) -> Array:
        y, page_size = kv.copy(), kv.shape[3]
        for t, slot in enumerate(slots):
            page, offset = divmod(int(slot), page_size)
            y[page, 0, :, offset] = k[t]
            y[page, 1, :, offset] = v[t]
        return y

    @property
    def lowerings(self) -> tuple[Lowering, ...]:
        return (
            append_lowering(),
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
    kv, k = call.type_of("kv"), call.type_of("k")
    _, _, heads, page_size, head_dim = kv.shape
    wide, narrow = f"vector<{head_dim}xf32>", f"vector<{head_dim}x{kv.dtype}>"
    row = f"tensor<1x1x1x1x{head_dim}x{kv.dtype}>"
    grid = Workgroups(call=call, reads=("k", "v", "slots"), count=("T",), tied="kv")

    def write(name: str, which: int) -> list[str]:
        lines = [
            f"%{name}_wide = vector.transfer_read %{name}[%wg0, %h, %c0], %zero "
            f"{{in_bounds = [true]}} : {k}, {wide}"
        ]
        if kv.dtype != "f32":
            lines.append(f"%{name}_row = arith.truncf %{name}_wide : {wide} to {narrow}")
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


def _emit_scatter(call: Call, symbol: str) -> str:
    """R = T * 2 * H rows [R, D], which rows of kv they are [R, 1], and a scatter of rows.

    Three dispatches, the second the same for every layer.  With its operands as
    [T, 2, H, …], the scatter wrote wrong rows on Vulkan (llvmpipe; bf16, D = 24),
    with no error, and IREE takes a reshape back to that form: so the rows are
    made flat.  `unique_indices` is what lets them be written in parallel; two
    padding rows of one slot may race, and nobody reads them.
    """
    kv, k, v, slots = (call.type_of(n) for n in ("kv", "k", "v", "slots"))
    tokens, heads, page_size, head_dim = k.shape[0], *kv.shape[2:]
    num_rows = tokens * 2 * heads if is_static(tokens) else None
    num_kv_rows = kv.shape[0] * 2 * heads * page_size if is_static(kv.shape[0]) else None
    rows, kv_rows = (TensorType((n, head_dim), kv.dtype) for n in (num_rows, num_kv_rows))
    places = TensorType((num_rows, 1), "i32")
    dyn = "" if is_static(tokens) else "%r_size"
    narrow = "" if kv.dtype == "f32" else f"%n = arith.truncf %w : f32 to {kv.dtype}"
    kv_shape = ", ".join(str(d) if is_static(d) else "%n_size" for d in kv.shape)
    which = """%t = arith.divui %r, %rows_of_token : index
    %in_token = arith.remui %r, %rows_of_token : index
    %x = arith.divui %in_token, %heads : index
    %h = arith.remui %in_token, %heads : index"""
    return f"""
{call.signature(symbol)} {{
  %c0 = arith.constant 0 : index
  %heads = arith.constant {heads} : index
  %rows_of_token = arith.constant {2 * heads} : index
  %ps = arith.constant {page_size} : index
  %t_size = tensor.dim %slots, %c0 : {slots}
  %r_size = arith.muli %t_size, %rows_of_token : index
  %n_size = tensor.dim %kv, %c0 : {kv}
  %rows_empty = tensor.empty({dyn}) : {rows}
  %rows = linalg.generic {{
      indexing_maps = [affine_map<(r, d) -> (r, d)>], iterator_types = ["parallel", "parallel"]
  }} outs(%rows_empty : {rows}) {{
  ^bb0(%o: {kv.dtype}):
    %r = linalg.index 0 : index
    %d = linalg.index 1 : index
    {which}
    %from_k = tensor.extract %k[%t, %h, %d] : {k}
    %from_v = tensor.extract %v[%t, %h, %d] : {v}
    %is_k = arith.cmpi eq, %x, %c0 : index
    %w = arith.select %is_k, %from_k, %from_v : f32
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
