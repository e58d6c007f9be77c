"""llm.quantized_matmul: a product with a weight that stays quantised in memory.

    w[n, k] = (q[n, k] - zero_point) * scales[n, k / g] + mins[n, k / g]
    y[t, n] = Σ_k x[t, k] * w[n, k] + bias[n]

Shape legend: T tokens, N output features, K input features, G groups in a row,
g elements in a group, B bytes in a group.  `quants` is formats.GroupQuantized's:
8-bit signed bytes, or 4-bit unsigned pairs, where byte j of a group has element j
in its low and element j + g/2 in its high nibble.

Sums are float32; the dequantised weight exists in registers only.  How x is rounded
before the product is `activations`, fixed when the model is compiled (activations.py).
"""

from __future__ import annotations

import numpy as np

from llmir.dialect_ext.activations import activations_are_known, only_float32
from llmir.dialect_ext.base import (
    Array,
    Attribute,
    Call,
    Lowering,
    Op,
    Operand,
)
from llmir.dialect_ext.packed_matmul import packed_lowerings, packing_refusal
from llmir.dialect_ext.scalar_rows import emit_scalar_rows
from llmir.dialect_ext.spirv_matmul import quantized_matmul_lowering
from llmir.dialect_ext.tiled_rows import Tile, emit_rows, lanes_for, multiply_add
from llmir.dialect_ext.types import TensorType, is_static
from llmir.dialect_ext.whole_words import ends_within_a_word
from llmir.formats.base import GroupQuantized, QuantLayout
from llmir.targets import Target


class QuantizedMatmul(Op):
    """x f32[T, K], quants i8[N, G, B], scales f32[N, G], mins f32[N, G]?, bias f32[N]? → f32[T, N].

    bits (4 or 8), group_size and zero_point as in formats.QuantLayout; format: the name of
    the format that the planes came from, which may need fewer bits than they ("" if none).
    """

    name = "quantized_matmul"
    operands = (
        Operand(name="x", dims=("T", "K"), dtypes=("f32",)),
        Operand(name="quants", dims=("N", "G", "B"), dtypes=("i8",)),
        Operand(name="scales", dims=("N", "G"), dtypes=("f32",)),
        Operand(name="mins", dims=("N", "G"), dtypes=("f32",), optional=True),
        Operand(name="bias", dims=("N",), dtypes=("f32",), optional=True),
    )
    attributes = (
        Attribute(name="bits", kind=int),
        Attribute(name="group_size", kind=int),
        Attribute(name="zero_point", kind=int),
        Attribute(name="format", kind=str, default=""),
        Attribute(name="activations", kind=str, default="f32"),
    )

    def check(self, call: Call) -> None:
        self.expect(*activations_are_known(call))
        x = call.type_of("x")
        quants = call.type_of("quants")
        bits, g = int(call.attrs["bits"]), int(call.attrs["group_size"])
        self.expect(all(map(is_static, quants.shape)), f"quants must be static, got {quants}")
        self.expect(bits in (4, 8), f"bits must be 4 or 8, got {bits}")
        self.expect(
            g > 0 and g * bits % 8 == 0,
            f"group_size must be positive and fill whole bytes at {bits} bits, got {g}",
        )
        _, groups, group_bytes = quants.shape
        self.expect(
            group_bytes == g * bits // 8,
            f"quants {quants} have {group_bytes} bytes a group; groups of {g} at {bits} bits "
            f"have {g * bits // 8}",
        )
        self.expect(
            x.shape[1] == groups * g,
            f"operand 'x' is {x}, but quants {quants} have {groups} groups of {g}: "
            f"K must be {groups * g}",
        )

    def result_types(self, call: Call) -> tuple[TensorType, ...]:
        x = call.type_of("x")
        quants = call.type_of("quants")
        return (TensorType((x.shape[0], quants.shape[0]), "f32"),)

    def reference(
        self,
        x: Array,
        quants: Array,
        scales: Array,
        mins: Array | None,
        bias: Array | None,
        *,
        bits: int,
        group_size: int,
        zero_point: int,
        format: str = "",
        activations: str = "f32",
    ) -> Array:
        """With activations not rounded: what every precision approximates."""
        layout = QuantLayout(
            bits=bits,
            group_size=group_size,
            zero_point=zero_point,
            has_mins=mins is not None,
        )
        w = GroupQuantized(layout=layout, quants=quants, scales=scales, mins=mins).dequantize()
        y = x.astype(np.float64) @ w.astype(np.float64).T
        return (y if bias is None else y + bias).astype(np.float32)

    @property
    def lowerings(self) -> tuple[Lowering, ...]:
        return (
            *packed_lowerings(_packed_supports),
            quantized_matmul_lowering(),
            Lowering(
                provider="portable", variant="tiled", supports=_tiled_supports, emit=_emit_tiled
            ),
            Lowering(
                provider="portable", variant="scalar", supports=_scalar_supports, emit=_emit_scalar
            ),
        )


def _packed_supports(call: Call, target: Target) -> str | None:
    """Of the kernels that read packed weights (packed_matmul.py)."""
    quants, x = call.type_of("quants"), call.type_of("x")
    cols = quants.shape[1] * int(call.attrs["group_size"])
    if reason := packing_refusal(call, target, cols, str(call.attrs["activations"])):
        return reason
    return None if is_static(x.shape[1]) else f"K must be static, got {x}"


def _tiled_supports(call: Call, target: Target) -> str | None:
    if not target.is_cpu:
        return "register tiles of vectors are for CPUs"
    if reason := only_float32(call, target):
        return reason
    group_bytes = call.type_of("quants").shape[2]
    if lanes_for(group_bytes) is None:
        return f"a group's {group_bytes} bytes are not a multiple of 4"
    return None


def _scalar_supports(call: Call, target: Target) -> str | None:
    return only_float32(call, target) or ends_within_a_word(call.type_of("quants"), target)


def _emit_tiled(call: Call, symbol: str) -> str:
    """See tiled_rows; a group at a time, its scale and min in registers."""
    group_bytes = call.type_of("quants").shape[2]
    lanes = lanes_for(group_bytes)
    assert lanes is not None
    constants = f"""
    %groups = arith.constant {call.type_of("quants").shape[1]} : index
    %group_size = arith.constant {call.attrs["group_size"]} : index
    %half_group = arith.constant {int(call.attrs["group_size"]) // 2} : index
    %group_bytes = arith.constant {group_bytes} : index
    %lanes = arith.constant {lanes} : index
    %no_byte = arith.constant 0 : i8
"""
    return emit_rows(
        call, symbol, lanes=lanes, constants=constants, sum_over_k=lambda t: _sum_over_k(call, t)
    )


def _sum_over_k(call: Call, tile: Tile) -> str:
    quants, scales = call.type_of("quants"), call.type_of("scales")
    per_row = "permutation_map = affine_map<(n, g) -> (n, 0)>"
    read_mins = (
        ""
        if call.operand("mins") is None
        else f"""
      %min = vector.transfer_read %mins_t[%n, %g], %zero {{in_bounds = [true, true],
          {per_row}}} : {scales}, {tile.vec("f32")}"""
    )
    return f"""
    %acc = scf.for %g = %c0 to %groups step %c1 iter_args(%acc_g = %init) -> ({tile.acc}) {{
      %scale = vector.transfer_read %scales_t[%n, %g], %zero {{in_bounds = [true, true],
          {per_row}}} : {scales}, {tile.vec("f32")}
{read_mins}
      %k_g = arith.muli %g, %group_size : index
      %acc_next = scf.for %j = %c0 to %group_bytes step %lanes
          iter_args(%acc_0 = %acc_g) -> ({tile.acc}) {{
        %k_low = arith.addi %k_g, %j : index
        %bytes = vector.transfer_read %quants_t[%n, %g, %j], %no_byte {{in_bounds = [true, true],
            permutation_map = affine_map<(n, g, j) -> (n, j)>}} : {quants}, {tile.vec("i8")}
{_unpack(call, tile)}
        scf.yield %acc_out : {tile.acc}
      }}
      scf.yield %acc_next : {tile.acc}
    }}
"""


def _unpack(call: Call, tile: Tile) -> str:
    """%acc_out = %acc_0 + the product with every element in %bytes."""
    x = TensorType((None, call.type_of("x").shape[1]), "f32")
    i8, i32 = tile.vec("i8"), tile.vec("i32")
    if call.attrs["bits"] == 8:
        return f"""
        %q = arith.extsi %bytes : {i8} to {i32}
{_dequantize(call, tile, q="q", out="w")}
{multiply_add(tile, x, w="w", k="k_low", acc="acc_0", out="acc_out")}"""
    return f"""
        %four = arith.constant dense<4> : {i32}
        %fifteen = arith.constant dense<15> : {i32}
        %wide = arith.extui %bytes : {i8} to {i32}
        %low = arith.andi %wide, %fifteen : {i32}
        %high = arith.shrui %wide, %four : {i32}
        %k_high = arith.addi %k_low, %half_group : index
{_dequantize(call, tile, q="low", out="w_low")}
{multiply_add(tile, x, w="w_low", k="k_low", acc="acc_0", out="acc_1")}
{_dequantize(call, tile, q="high", out="w_high")}
{multiply_add(tile, x, w="w_high", k="k_high", acc="acc_1", out="acc_out")}"""


def _dequantize(call: Call, tile: Tile, *, q: str, out: str) -> str:
    """%out f32 of the integers %q: the formula at the top of this module."""
    i32, f32 = tile.vec("i32"), tile.vec("f32")
    scaled = out if call.operand("mins") is None else f"{out}_scaled"
    add_min = (
        ""
        if scaled == out
        else f"""
        %{out} = arith.addf %{scaled}, %min fastmath<contract> : {f32}"""
    )
    return f"""
        %{out}_zero = arith.constant dense<{call.attrs["zero_point"]}> : {i32}
        %{out}_q = arith.subi %{q}, %{out}_zero : {i32}
        %{out}_f = arith.sitofp %{out}_q : {i32} to {f32}
        %{scaled} = arith.mulf %{out}_f, %scale fastmath<contract> : {f32}{add_min}"""


def _emit_scalar(call: Call, symbol: str) -> str:
    """See scalar_rows; a byte at a time."""
    quants, scales = call.type_of("quants"), call.type_of("scales")
    mins = call.operand("mins") is not None
    four_bit = call.attrs["bits"] == 4
    g = int(call.attrs["group_size"])
    zero_point = call.attrs["zero_point"]
    read_min = f"%min = tensor.extract %mins[%n, %g] : {scales}" if mins else ""

    def element(name: str, *, q: str, k: str, acc: str) -> str:
        """%acc_<name> = %acc + x[t, k] · w, for the integer %q."""
        return f"""
        %x_{name} = tensor.extract %x[%t, %{k}] : {call.type_of("x")}
        %q_{name} = arith.subi %{q}, %zero_point : i32
        %f_{name} = arith.sitofp %q_{name} : i32 to f32
        %s_{name} = arith.mulf %f_{name}, %scale : f32
        {f"%w_{name} = arith.addf %s_{name}, %min : f32" if mins else ""}
        %p_{name} = arith.mulf %x_{name}, %{"w" if mins else "s"}_{name} : f32
        %acc_{name} = arith.addf %{acc}, %p_{name} : f32"""

    if four_bit:
        last = "high"
        steps = f"""
        %four = arith.constant 4 : i32
        %fifteen = arith.constant 15 : i32
        %half = arith.constant {g // 2} : index
        %wide = arith.extui %byte : i8 to i32
        %low = arith.andi %wide, %fifteen : i32
        %high = arith.shrui %wide, %four : i32
        %k_high = arith.addi %k, %half : index
{element("low", q="low", k="k", acc="acc_j")}
{element("high", q="high", k="k_high", acc="acc_low")}"""
    else:
        last = "byte"
        steps = f"""
        %wide = arith.extsi %byte : i8 to i32
{element("byte", q="wide", k="k", acc="acc_j")}"""
    return emit_scalar_rows(
        call,
        symbol,
        f"""
    %groups = arith.constant {quants.shape[1]} : index
    %group_size = arith.constant {g} : index
    %group_bytes = arith.constant {quants.shape[2]} : index
    %zero_point = arith.constant {zero_point} : i32
    %acc = scf.for %g = %c0 to %groups step %c1 iter_args(%acc_g = %zero) -> (f32) {{
      %scale = tensor.extract %scales[%n, %g] : {scales}
      {read_min}
      %k_g = arith.muli %g, %group_size : index
      %acc_next = scf.for %j = %c0 to %group_bytes step %c1 iter_args(%acc_j = %acc_g) -> (f32) {{
        %byte = tensor.extract %quants[%n, %g, %j] : {quants}
        %k = arith.addi %k_g, %j : index
{steps}
        scf.yield %acc_{last} : f32
      }}
      scf.yield %acc_next : f32
    }}""",
    )
