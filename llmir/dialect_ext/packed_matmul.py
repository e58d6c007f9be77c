"""llm.packed_matmul and llm.packed_embedding: a weight in the kernels' own layout.

    a[t, :] = x[t, :] / sqrt(mean(x[t, :]²) + eps) * norm        or x, where there is no norm
    y[t, n] = Σ_k a[t, k] * w[n, k] + bias[n] + residual[t, n]
    silu_mul: w's rows are tiles of gate and up in turn, and
              y[t, n] = silu(gate[t, n]) * up[t, n]

Shape legend: T tokens, N output features, K input features, B bytes.

The pass pack-weights makes these ops of llm.quantized_matmul, llm.linear and their embeddings;
fuse-matmul gives them norm, residual and silu_mul.  `weight` is what formats.packed makes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from llmir.dialect_ext.activations import activations_are_known, allowed
from llmir.dialect_ext.argmax import Argmax
from llmir.dialect_ext.base import Array, Attribute, Call, Lowering, Op, Operand
from llmir.dialect_ext.c_kernels import (
    PROVIDER,
    CKernel,
    Count,
    Id,
    flags,
    needs_kernels,
    read_workers,
    workgroups,
)
from llmir.dialect_ext.types import TensorType, is_static
from llmir.errors import CompileError
from llmir.formats import packed
from llmir.formats.base import QuantLayout
from llmir.formats.floats import to_bf16
from llmir.targets import Target

# As in plugins/cpu/matmul.c.
CHUNK = 128  # tokens of a workgroup, at most
_SCRATCH_ROWS = 16
_PANEL_BYTES = 38  # for each column of a tile
_FLOAT_PIECE_BYTES = 16 * (32 + 3) * 16 * 4
_HAS_NORM, _HAS_BIAS, _HAS_RESIDUAL, _SILU_MUL, _BEST = 1, 2, 4, 8, 16
_PLANES = {"int8": 1, "int12": 2, "int16": 2}
LARGEST_INT = {"int8": 127.0, "int12": 2032.0, "int16": 32512.0}
"""The largest number that an activation is rounded to, of each precision of integers."""


def activations_of(format_name: str) -> tuple[str, ...]:
    """The precisions that the kernels of a format compute with, the fastest first."""
    form = packed.FORMATS.get(format_name)
    if form is None:
        return ()
    if form.is_float:
        return ("bf16", "f32") if format_name == "bf16" else ("f32", "bf16")
    four_bits = form.bits == 4 and not form.table  # 16 w is a byte
    return (*(a for a in _PLANES if four_bits or a != "int12"), "f32", "bf16")


class PackedMatmul(Op):
    """x f32[T, K], weight i8[B], norm f32[K]?, bias f32[N]?, residual f32[T, N]? → f32[T, N].

    format: of formats.packed.  activations: one of activations_of(format).  rows: N.
    """

    name = "packed_matmul"
    from_torch = False
    operands = (
        Operand(name="x", dims=("T", "K"), dtypes=("f32",)),
        Operand(name="weight", dims=("B",), dtypes=("i8",)),
        Operand(name="norm", dims=("K",), dtypes=("f32",), optional=True),
        Operand(name="bias", dims=("N",), dtypes=("f32",), optional=True),
        Operand(name="residual", dims=("T", "N"), dtypes=("f32",), optional=True),
    )
    attributes = (
        Attribute(name="format", kind=str),
        Attribute(name="activations", kind=str),
        Attribute(name="rows", kind=int),
        Attribute(name="silu_mul", kind=bool, default=False),
        Attribute(name="eps", kind=float, default=0.0),
    )

    def check(self, call: Call) -> None:
        self.expect(*activations_are_known(call))
        _check_format(self, call)
        x, weight = call.type_of("x"), call.type_of("weight")
        rows, cols = int(call.attrs["rows"]), x.shape[1]
        self.expect(is_static(cols), f"K must be static, got x {x}")
        matrix_rows = rows * (2 if call.attrs["silu_mul"] else 1)
        expected = packed.FORMATS[str(call.attrs["format"])].num_bytes(matrix_rows, cols)
        self.expect(
            weight.shape[0] == expected,
            f"operand 'weight' must have {expected} bytes for {matrix_rows} rows of {cols}, "
            f"got {weight}",
        )
        for name in ("bias", "residual"):
            found = call.operand(name)
            self.expect(
                found is None or found.shape[-1] == rows,
                f"operand {name!r} must have N = {rows}, got {found}",
            )
        self.expect(
            not call.attrs["silu_mul"] or rows % packed.TILE_ROWS == 0,
            f"silu_mul takes whole tiles of {packed.TILE_ROWS} rows in turn, got {rows} rows",
        )
        fused = call.operand("bias") or call.operand("residual")
        self.expect(
            not call.attrs["silu_mul"] or fused is None, "silu_mul takes no bias and no residual"
        )

    def result_types(self, call: Call) -> tuple[TensorType, ...]:
        return (TensorType((call.type_of("x").shape[0], int(call.attrs["rows"])), "f32"),)

    def reference(
        self,
        x: Array,
        weight: Array,
        norm: Array | None,
        bias: Array | None,
        residual: Array | None,
        *,
        format: str,
        activations: str,
        rows: int,
        silu_mul: bool,
        eps: float,
    ) -> Array:
        """With the activations rounded as the kernels round them."""
        a = x.astype(np.float32)
        if norm is not None:
            mean = np.mean(a.astype(np.float64) ** 2, axis=1, keepdims=True)
            a = (a / np.sqrt(mean + eps) * norm).astype(np.float32)
        a = rounded(a, activations)
        matrix_rows = rows * (2 if silu_mul else 1)
        w = packed.unpack_matrix(format, weight.view(np.uint8), matrix_rows, x.shape[1])
        y = a.astype(np.float64) @ w.astype(np.float64).T
        if silu_mul:
            tiles = y.reshape(len(y), rows // packed.TILE_ROWS, 2, packed.TILE_ROWS)
            gate, up = (tiles[:, :, i].reshape(len(y), rows) for i in (0, 1))
            with np.errstate(over="ignore"):
                y = gate / (1 + np.exp(-gate)) * up
        for added in (bias, residual):
            y = y if added is None else y + added
        return y.astype(np.float32)

    @property
    def lowerings(self) -> tuple[Lowering, ...]:
        return (
            Lowering(provider=PROVIDER, supports=_matmul_supports, emit=_emit_matmul, flags=flags),
        )


class PackedArgmax(Op):
    """argmax over n of y, of packed_matmul: x, weight, norm?, bias? → i32[T].

    -1 where the logits of a row are not all finite or -inf, as of llm.argmax.
    """

    name = "packed_argmax"
    from_torch = False
    operands = PackedMatmul.operands[:4]
    attributes = tuple(a for a in PackedMatmul.attributes if a.name != "silu_mul")

    def check(self, call: Call) -> None:
        self._as_matmul(call)

    def result_types(self, call: Call) -> tuple[TensorType, ...]:
        return (TensorType((call.type_of("x").shape[0],), "i32"),)

    def reference(
        self, x: Array, weight: Array, norm: Array | None, bias: Array | None, **attrs: Any
    ) -> Array:
        logits = PackedMatmul().reference(x, weight, norm, bias, None, silu_mul=False, **attrs)
        return Argmax().reference(logits)

    @staticmethod
    def _as_matmul(call: Call) -> Call:
        return PackedMatmul().verify((*call.operands, None), call.attrs)

    @property
    def lowerings(self) -> tuple[Lowering, ...]:
        return (
            Lowering(provider=PROVIDER, supports=_matmul_supports, emit=_emit_argmax, flags=flags),
        )


class PackedEmbedding(Op):
    """ids i32[T], table i8[B] → f32[T, cols]: rows of a packed table.  format: as above."""

    name = "packed_embedding"
    from_torch = False
    operands = (
        Operand(name="ids", dims=("T",), dtypes=("i32",)),
        Operand(name="table", dims=("B",), dtypes=("i8",)),
    )
    attributes = (
        Attribute(name="format", kind=str),
        Attribute(name="rows", kind=int),
        Attribute(name="cols", kind=int),
    )

    def check(self, call: Call) -> None:
        _check_format(self, call)
        table = call.type_of("table")
        rows, cols = int(call.attrs["rows"]), int(call.attrs["cols"])
        expected = packed.FORMATS[str(call.attrs["format"])].num_bytes(rows, cols)
        self.expect(
            table.shape[0] == expected,
            f"operand 'table' must have {expected} bytes for {rows} rows of {cols}, got {table}",
        )

    def result_types(self, call: Call) -> tuple[TensorType, ...]:
        return (TensorType((call.type_of("ids").shape[0], int(call.attrs["cols"])), "f32"),)

    def reference(self, ids: Array, table: Array, *, format: str, rows: int, cols: int) -> Array:
        return packed.unpack_matrix(format, table.view(np.uint8), rows, cols)[ids]

    @property
    def lowerings(self) -> tuple[Lowering, ...]:
        return (
            Lowering(
                provider=PROVIDER,
                supports=lambda call, target: needs_kernels(target),
                emit=_emit_embedding,
                flags=flags,
            ),
        )


def packed_format(call: Call, cols: int) -> str | None:
    """The packed format for the weight of an op on planes or on floats, None if there is none."""
    if "bits" not in call.attrs:
        # llm.linear's weight, llm.embedding's table
        return call.operands[1].dtype if call.operands[1] else None
    bits, g, zero_point = (int(call.attrs[n]) for n in ("bits", "group_size", "zero_point"))
    has_mins = call.operand("mins") is not None
    layout = QuantLayout(bits=bits, group_size=g, zero_point=zero_point, has_mins=has_mins)
    return packed.format_of(str(call.attrs["format"]), layout, cols)


def packing_refusal(call: Call, cols: int, activations: str | None = None) -> str | None:
    """Why the weight of a call cannot be packed, None if it can.

    activations: what the call's attribute of that name says, if it has one
    """
    format_name = packed_format(call, cols)
    if format_name is None:
        return f"no packed layout for {call.attrs['format'] or 'planes of no named format'}"
    if cols % packed.BLOCK:
        return f"K = {cols} is not a multiple of {packed.BLOCK}"
    there = activations_of(format_name)
    if activations is not None and not set(there) & set(allowed(activations)):
        return f"activations are {' or '.join(there)} here, not {activations}"
    return None


def packed_lowering(supports: Callable[[Call, Target], str | None]) -> Lowering:
    """The C kernels' lowering of an op that reads a weight: pack-weights makes it a packed one.

    supports: asked for targets that have kernels.
    """

    def emit(call: Call, symbol: str) -> str:
        raise CompileError(f"llm.{call.op.name} of {PROVIDER} is for pack-weights; run it first")

    return Lowering(
        provider=PROVIDER,
        supports=lambda call, target: needs_kernels(target) or supports(call, target),
        emit=emit,
    )


def rounded(a: Array, activations: str) -> Array:
    """float32 [T, K] as the kernels see it: integers in blocks of 32.  See activations.h."""
    if activations == "f32":
        return a
    if activations == "bf16":
        return (to_bf16(a).astype(np.uint32) << np.uint32(16)).view(np.float32)
    largest_int = LARGEST_INT[activations]
    blocks = a.reshape(len(a), a.shape[1] // packed.BLOCK, packed.BLOCK).astype(np.float32)
    largest = np.abs(blocks).max(axis=2, keepdims=True)
    scale = (largest / np.float32(largest_int)).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(largest > 0, np.float32(largest_int) / largest, 0).astype(np.float32)
    return (np.rint(blocks * inverse) * scale).astype(np.float32).reshape(a.shape)


def _check_format(op: Op, call: Call) -> None:
    known = ", ".join(packed.FORMATS)
    op.expect(
        call.attrs["format"] in packed.FORMATS,
        f"format must be {known}; got {call.attrs['format']!r}",
    )


def _matmul_supports(call: Call, target: Target) -> str | None:
    if reason := needs_kernels(target):
        return reason
    there = activations_of(str(call.attrs["format"]))
    if call.attrs["activations"] not in there:
        return f"activations must be {' or '.join(there)}, not {call.attrs['activations']}"
    return None


def _emit_matmul(call: Call, symbol: str) -> str:
    """See plugins/cpu/matmul.c."""
    y = TensorType((None, int(call.attrs["rows"])), "f32")
    dispatch = _Dispatch(call, symbol, y, extra_flags=_SILU_MUL * bool(call.attrs["silu_mul"]))
    return f"""{dispatch.executable()}
{call.signature(symbol)} {{
{dispatch.statements(["%T"])}
  %y = tensor.cast %y_any : {y} to {call.results[0]}
  return %y : {call.results[0]}
}}
"""


def _emit_argmax(call: Call, symbol: str) -> str:
    """See plugins/cpu/matmul.c: the best of each share of the rows, then the best of those."""
    parts, ids = TensorType((None, None, 2), "f32"), TensorType((None,), "i32")
    dispatch = _Dispatch(call, symbol, parts, extra_flags=_BEST)
    best = CKernel(
        symbol=f"{symbol}_best",
        function="llmir_best",
        reads=(("parts", parts),),
        writes=(("ids", ids),),
        sizes=("T", "count_n"),
        arguments=("parts", "ids", "T", "count_n", Id(0), Count(0)),
        grid=workgroups("1"),
    )
    chosen = best.dispatch(
        {"parts": "%y_any"}, {"parts": ["%count_n", "%T"], "ids": ["%T"]}, {"ids": "%ids_any"}
    )
    return f"""{dispatch.executable()}{best.executable()}
{call.signature(symbol)} {{
{dispatch.statements(["%count_n", "%T"])}
  {chosen}
  %ids = tensor.cast %ids_any : {ids} to {call.results[0]}
  return %ids : {call.results[0]}
}}
"""


class _Dispatch:
    """The dispatch of a matmul's kernel; its second result is the workgroups' scratch memory."""

    def __init__(self, call: Call, symbol: str, y: TensorType, extra_flags: int) -> None:
        self.symbol, self.call, self.y = symbol, call, y
        self.x = TensorType((None, call.type_of("x").shape[1]), "f32")
        self.rows, self.cols = int(call.attrs["rows"]), self.x.shape[1]
        self.activations = str(call.attrs["activations"])
        # T is dynamic for the kernel, also where it is static here.
        self.loose = {"x": self.x, "residual": TensorType((None, self.rows), "f32")}
        self.types = dict(call.present)
        has = {name: name in self.types for name in ("norm", "bias", "residual")}
        bits = (("norm", _HAS_NORM), ("bias", _HAS_BIAS), ("residual", _HAS_RESIDUAL))
        self.kernel = CKernel(
            symbol=symbol,
            function=f"llmir_matmul_{call.attrs['format']}_{call.attrs['activations']}",
            reads=tuple((name, self.loose.get(name, t)) for name, t in call.present),
            writes=(("y", y), ("scratch", TensorType((None,), "i8"))),
            sizes=("T", "W"),
            arguments=(
                "x",
                "norm" if has["norm"] else "x",
                "weight",
                "bias" if has["bias"] else "x",
                "residual" if has["residual"] else "x",
                "y",
                "scratch",
                "T",
                self.cols,
                self.rows,
                extra_flags + sum(bit for name, bit in bits if has[name]),
                float(call.attrs["eps"]),
                Id(0),
                Count(0),
                Id(1),
                Count(1),
            ),
            grid=_grid(self.rows) + "\n" + workgroups("%count_n", "%count_m"),
        )

    def executable(self) -> str:
        """Module-level MLIR."""
        return self.kernel.executable()

    def statements(self, y_dims: list[str]) -> str:
        """MLIR that defines %y_any, %T and %count_n."""
        operands = {name: f"%{name}" for name in self.types}
        casts = ""
        for name in ("x", "residual"):
            if name in self.types:
                casts += (
                    f"  %{name}_any = tensor.cast %{name} : {self.types[name]} "
                    f"to {self.loose[name]}\n"
                )
                operands[name] = f"%{name}_any"
        dims = {"x": ["%T"], "residual": ["%T"], "y": y_dims, "scratch": ["%bytes"]}
        return f"""{casts}  %zero = arith.constant 0 : index
  %T = tensor.dim %x_any, %zero : {self.x}
{read_workers()}
{_grid(self.rows)}
{_scratch_bytes(self.cols, self.activations)}
  {self.kernel.dispatch(operands, dims, {"y": "%y_any", "scratch": "%scratch"})}"""


def row_bytes(cols: int, activations: str) -> int:
    """Bytes of a row of activations in scratch memory, as in plugins/cpu/activations.h."""
    blocks = cols // packed.BLOCK
    if activations in _PLANES:
        return (_PLANES[activations] * cols + 16 * blocks + 63) // 64 * 64
    return (4 * cols + 4 * blocks + 63) // 64 * 64


def _scratch_bytes(cols: int, activations: str) -> str:
    """%bytes of scratch memory: chunk_bytes of matmul.c for each workgroup."""
    of_row, beside = row_bytes(cols, activations), _FLOAT_PIECE_BYTES
    if activations in _PLANES:
        of_row += cols // packed.BLOCK * (_PLANES[activations] * packed.BLOCK + 8)
        beside = 2 * _PANEL_BYTES * cols
    return f"""    %row_bytes = arith.constant {of_row} : index
    %unpacked_bytes = arith.constant {beside} : index
    %most_rows = arith.constant {CHUNK} : index
    %whole_rows = arith.constant {_SCRATCH_ROWS} : index
    %some_rows = arith.minui %T, %most_rows : index
    %sixteens = arith.ceildivui %some_rows, %whole_rows : index
    %chunk_rows = arith.muli %sixteens, %whole_rows : index
    %rows_bytes = arith.muli %chunk_rows, %row_bytes : index
    %chunk_bytes = arith.addi %rows_bytes, %unpacked_bytes : index
    %workgroups = arith.muli %count_n, %count_m : index
    %bytes = arith.muli %workgroups, %chunk_bytes : index"""


def _grid(rows: int) -> str:
    """%count_n shares of the rows × %count_m chunks of the %T tokens, for %W workers.

    Each workgroup rounds the activations of its tokens itself: tokens are split first, and
    the rows as far as it takes to have a workgroup for each worker, or two where that is cheap:
    of 32 tokens a second rounding cost an eighth of the step.
    """
    units = -(-rows // packed.TILE_ROWS)
    return f"""    %chunk_tokens = arith.constant {CHUNK} : index
    %units = arith.constant {units} : index
    %few_tokens = arith.constant 16 : index
    %is_few = arith.cmpi ule, %T, %few_tokens : index
    %of_few = arith.constant 2 : index
    %of_many = arith.constant 1 : index
    %per_worker = arith.select %is_few, %of_few, %of_many : index
    %wanted = arith.muli %W, %per_worker : index
    %chunks = arith.ceildivui %T, %chunk_tokens : index
    %one_chunk = arith.constant 1 : index
    %count_m = arith.maxui %chunks, %one_chunk : index
    %shares = arith.ceildivui %wanted, %count_m : index
    %count_n = arith.minui %shares, %units : index"""


def _emit_embedding(call: Call, symbol: str) -> str:
    """See plugins/cpu/rows.c."""
    ids, y = TensorType((None,), "i32"), TensorType((None, int(call.attrs["cols"])), "f32")
    grid = """    %share_tokens = arith.constant 16 : index
    %shares = arith.ceildivui %T, %share_tokens : index
"""
    kernel = CKernel(
        symbol=symbol,
        function=f"llmir_rows_{call.attrs['format']}",
        reads=(("ids", ids), ("table", call.type_of("table"))),
        writes=(("y", y),),
        sizes=("T",),
        arguments=("ids", "table", "y", "T", int(call.attrs["cols"]), Id(0), Count(0)),
        grid=grid + workgroups("%shares"),
    )
    dispatch = kernel.dispatch(
        {"ids": "%ids_any", "table": "%table"}, {"ids": ["%T"], "y": ["%T"]}, {"y": "%y_any"}
    )
    return f"""{kernel.executable()}
{call.signature(symbol)} {{
  %zero = arith.constant 0 : index
  %ids_any = tensor.cast %ids : {call.type_of("ids")} to {ids}
  %T = tensor.dim %ids_any, %zero : {ids}
  {dispatch}
  %y = tensor.cast %y_any : {y} to {call.results[0]}
  return %y : {call.results[0]}
}}
"""
