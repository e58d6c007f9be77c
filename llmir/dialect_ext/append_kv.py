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

from collections.abc import Mapping, Sequence

from llmir.dialect_ext.base import Array, AttrValue, Call, Lowering, Op, Operand, everywhere
from llmir.dialect_ext.types import TensorType, is_static
from llmir.dialect_ext.workgroups import Workgroups, cpu_only, indented


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

    def check(
        self, operands: Sequence[TensorType | None], attrs: Mapping[str, AttrValue]
    ) -> None:
        kv = operands[0]
        assert kv is not None
        self.expect(
            all(is_static(d) for d in kv.shape[1:]), f"H, ps and D of kv must be static, got {kv}"
        )

    def result_types(
        self, operands: Sequence[TensorType | None], attrs: Mapping[str, AttrValue]
    ) -> tuple[TensorType, ...]:
        kv = operands[0]
        assert kv is not None
        return (kv,)

    def reference(self, *operands: Array | None, **attrs: AttrValue) -> Array:
        kv, k, v, slots = operands
        assert kv is not None
        assert k is not None
        assert v is not None
        assert slots is not None
        y, page_size = kv.copy(), kv.shape[3]
        for t, slot in enumerate(slots):
            page, offset = divmod(int(slot), page_size)
            y[page, 0, :, offset] = k[t]
            y[page, 1, :, offset] = v[t]
        return y

    @property
    def lowerings(self) -> tuple[Lowering, ...]:
        return (
            Lowering(provider="portable", variant="rows", supports=cpu_only, emit=_emit_rows),
            Lowering(
                provider="portable", variant="scatter", supports=everywhere, emit=_emit_scatter
            ),
        )


def _emit_rows(call: Call, symbol: str) -> str:
    """One dispatch on kv's own storage; a workgroup writes one token's K and V."""
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
    """Rows [T, 2, H, D], where they go [T, 2, H, 4], and a scatter: three dispatches.

    `unique_indices` is what lets the rows be written in parallel; two padding
    rows of one slot may race, and nobody reads them.
    """
    kv, k, slots = call.type_of("kv"), call.type_of("k"), call.type_of("slots")
    tokens, heads, head_dim = k.shape[0], *kv.shape[2::2]
    rows = TensorType((tokens, 2, heads, head_dim), kv.dtype)
    places = TensorType((tokens, 2, heads, 4), "i32")
    dyn = "" if is_static(tokens) else "%t_size"
    narrow = "" if kv.dtype == "f32" else f"%n = arith.truncf %w : f32 to {kv.dtype}"
    return f"""
{call.signature(symbol)} {{
  %c0 = arith.constant 0 : index
  %c1 = arith.constant 1 : index
  %c2 = arith.constant 2 : index
  %ps = arith.constant {kv.shape[3]} : i32
  %t_size = tensor.dim %slots, %c0 : {slots}
  %rows_empty = tensor.empty({dyn}) : {rows}
  %rows = linalg.generic {{
      indexing_maps = [affine_map<(t, x, h, d) -> (t, h, d)>, affine_map<(t, x, h, d) -> (t, h, d)>,
                       affine_map<(t, x, h, d) -> (t, x, h, d)>],
      iterator_types = ["parallel", "parallel", "parallel", "parallel"]
  }} ins(%k, %v : {k}, {call.type_of("v")}) outs(%rows_empty : {rows}) {{
  ^bb0(%from_k: f32, %from_v: f32, %o: {kv.dtype}):
    %x = linalg.index 1 : index
    %is_k = arith.cmpi eq, %x, %c0 : index
    %w = arith.select %is_k, %from_k, %from_v : f32
    {narrow}
    linalg.yield {"%n" if narrow else "%w"} : {kv.dtype}
  }} -> {rows}
  %places_empty = tensor.empty({dyn}) : {places}
  %places = linalg.generic {{
      indexing_maps = [affine_map<(t, x, h, i) -> (t)>, affine_map<(t, x, h, i) -> (t, x, h, i)>],
      iterator_types = ["parallel", "parallel", "parallel", "parallel"]
  }} ins(%slots : {slots}) outs(%places_empty : {places}) {{
  ^bb0(%slot: i32, %o: i32):
    %x = linalg.index 1 : index
    %h = linalg.index 2 : index
    %i = linalg.index 3 : index
    %page = arith.divui %slot, %ps : i32
    %kind = arith.index_cast %x : index to i32
    %head = arith.index_cast %h : index to i32
    %offset = arith.remui %slot, %ps : i32
    %is_0 = arith.cmpi eq, %i, %c0 : index
    %is_1 = arith.cmpi eq, %i, %c1 : index
    %is_2 = arith.cmpi eq, %i, %c2 : index
    %from_2 = arith.select %is_2, %head, %offset : i32
    %from_1 = arith.select %is_1, %kind, %from_2 : i32
    %from_0 = arith.select %is_0, %page, %from_1 : i32
    linalg.yield %from_0 : i32
  }} -> {places}
  %y = iree_linalg_ext.scatter dimension_map = [0, 1, 2, 3] unique_indices(true)
      ins(%rows, %places : {rows}, {places}) outs(%kv : {kv}) {{
  ^bb0(%new: {kv.dtype}, %old: {kv.dtype}):
    iree_linalg_ext.yield %new : {kv.dtype}
  }} -> {kv}
  return %y : {kv}
}}
"""
