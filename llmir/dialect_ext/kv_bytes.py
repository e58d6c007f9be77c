"""MLIR that reads and writes int8 and fp8 rows of pages (kv_formats.py), for portable lowerings.

Each function gives statements on numbers, or on vectors of as many `lanes`; names are without
their `%`.  Integers and float32 alone: float16 is not to be trusted on every target.
"""

from __future__ import annotations

from llmir.dialect_ext.base import literal
from llmir.dialect_ext.kv_formats import LARGEST_INT8, SCALE_BYTES
from llmir.dialect_ext.types import TensorType


def _shaped(element: str, lanes: int | None) -> str:
    return element if lanes is None else f"vector<{lanes}x{element}>"


class _Values:
    """Constants and one-line operations on one shape."""

    def __init__(self, prefix: str, lanes: int | None) -> None:
        self.prefix, self.lanes, self.lines = prefix, lanes, list[str]()
        self.f32, self.i32, self.i8 = (_shaped(t, lanes) for t in ("f32", "i32", "i8"))

    def _add(self, text: str) -> str:
        name = f"%{self.prefix}_{len(self.lines)}"
        self.lines.append(f"{name} = {text}")
        return name

    def const(self, value: float) -> str:
        is_int = isinstance(value, int)
        text = str(value) if is_int else literal(value)
        text = text if self.lanes is None else f"dense<{text}>"
        return self._add(f"arith.constant {text} : {self.i32 if is_int else self.f32}")

    def on_i32(self, op: str, a: str, b: str | int) -> str:
        b = self.const(b) if isinstance(b, int) else b
        return self._add(f"arith.{op} {a}, {b} : {self.i32}")

    def on_f32(self, op: str, a: str, b: str | float) -> str:
        b = self.const(float(b)) if isinstance(b, float) else b
        return self._add(f"arith.{op} {a}, {b} : {self.f32}")

    def less(self, a: str, b: int) -> str:
        return self._add(f"arith.cmpi ult, {a}, {self.const(b)} : {self.i32}")

    def select(self, condition: str, a: str, b: str, kind: str) -> str:
        # A vector's condition is a vector too.
        types = kind if self.lanes is None else f"{_shaped('i1', self.lanes)}, {kind}"
        op = "arith.select"
        return self._add(f"{op} {condition}, {a}, {b} : {types}")

    def cast(self, op: str, a: str, start: str, end: str) -> str:
        return self._add(f"{op} {a} : {start} to {end}")

    def named(self, name: str) -> list[str]:
        """The lines, the last of them defining `name`."""
        last = self.lines[-1].partition(" = ")[2]
        return [*self.lines[:-1], f"%{name} = {last}"]


def widen(name: str, raw: str, form: str, lanes: int | None = None) -> list[str]:
    """`name`: float32 of the bytes `raw`; of int8 before the scale."""
    v = _Values(f"{name}_w", lanes)
    if form == "int8":
        return [f"%{name} = arith.sitofp %{raw} : {v.i8} to {v.f32}"]
    byte = v.cast("arith.extui", f"%{raw}", v.i8, v.i32)
    size = v.on_i32("andi", byte, 127)
    sign = v.on_i32("shli", v.on_i32("andi", byte, 128), 24)
    normal = v.on_i32("addi", v.on_i32("shli", size, 20), 120 << 23)
    units = v.cast("arith.uitofp", size, v.i32, v.f32)
    small = v.cast("arith.bitcast", v.on_f32("mulf", units, 2.0**-9), v.f32, v.i32)
    bits = v.select(v.less(size, 8), small, normal, v.i32)
    bits = v.select(v.less(size, 127), bits, v.const(0x7FC00000), v.i32)
    v.cast("arith.bitcast", v.on_i32("ori", bits, sign), v.i32, v.f32)
    return v.named(name)


def narrow_fp8(name: str, x: str, lanes: int | None = None) -> list[str]:
    """`name`: the byte of float32 `x`."""
    v = _Values(f"{name}_n", lanes)
    all_bits = v.cast("arith.bitcast", f"%{x}", v.f32, v.i32)
    size = v.on_i32("andi", all_bits, 0x7FFFFFFF)
    capped = v.on_i32("minui", size, 0x43E00000)  # 448
    odd = v.on_i32("andi", v.on_i32("shrui", capped, 20), 1)
    up = v.on_i32("addi", v.on_i32("addi", capped, 0x7FFFF), odd)
    normal = v.on_i32("subi", v.on_i32("shrui", up, 20), 120 << 3)
    # 1 at the most, so that the integer is one, whatever is selected.
    low = v.cast("arith.bitcast", v.on_i32("minui", capped, 0x3F800000), v.i32, v.f32)
    units = v._add(f"math.roundeven {v.on_f32('mulf', low, 2.0**9)} : {v.f32}")
    small = v.cast("arith.fptoui", units, v.f32, v.i32)
    byte = v.select(v.less(capped, 0x3C800000), small, normal, v.i32)
    byte = v.select(v.less(size, 0x7F800001), byte, v.const(127), v.i32)
    sign = v.on_i32("andi", v.on_i32("shrui", all_bits, 24), 128)
    v.cast("arith.trunci", v.on_i32("ori", byte, sign), v.i32, v.i8)
    return v.named(name)


def int8_scale(name: str, largest: str) -> list[str]:
    """`name`: the scale of a row with `largest` = max |x|; `name`_divisor: what to divide by."""
    return [
        f"%{name}_most = arith.constant {literal(LARGEST_INT8)} : f32",
        f"%{name}_zero = arith.constant 0.0 : f32",
        f"%{name}_one = arith.constant 1.0 : f32",
        f"%{name} = arith.divf %{largest}, %{name}_most : f32",
        f"%{name}_some = arith.cmpf ogt, %{name}, %{name}_zero : f32",
        f"%{name}_divisor = arith.select %{name}_some, %{name}, %{name}_one : f32",
    ]


def narrow_int8(name: str, x: str, divisor: str, lanes: int | None = None) -> list[str]:
    """`name`: the integer of float32 `x`; the divisor has x's shape."""
    v = _Values(f"{name}_n", lanes)
    q = v.on_f32("divf", f"%{x}", f"%{divisor}")
    is_number = v._add(f"arith.cmpf oeq, {q}, {q} : {v.f32}")
    q = v.select(is_number, q, v.const(0.0), v.f32)
    q = v.on_f32("minimumf", v.on_f32("maximumf", q, -float(LARGEST_INT8)), float(LARGEST_INT8))
    q = v.cast("arith.fptosi", v._add(f"math.roundeven {q} : {v.f32}"), v.f32, v.i32)
    v.cast("arith.trunci", q, v.i32, v.i8)
    return v.named(name)


def read_scale(name: str, kv: TensorType, place: str, dim: int) -> list[str]:
    """`name`: the scale of the int8 row at `place`, the indices before the last, of %kv."""
    lines, bits = [], ""
    for i in range(SCALE_BYTES):
        part = f"{name}_part{i}"
        lines += [
            f"%{part}_at = arith.constant {dim + i} : index",
            f"%{part}_raw = tensor.extract %kv[{place}, %{part}_at] : {kv}",
            f"%{part}_byte = arith.extui %{part}_raw : i8 to i32",
            f"%{part}_shift = arith.constant {8 * i} : i32",
            f"%{part} = arith.shli %{part}_byte, %{part}_shift : i32",
        ]
        if bits:
            lines.append(f"%{part}_all = arith.ori %{bits}, %{part} : i32")
        bits = f"{part}_all" if bits else part
    return [*lines, f"%{name} = arith.bitcast %{bits} : i32 to f32"]
