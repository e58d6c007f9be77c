"""llm.packed_matmul and llm.packed_embedding: a weight in the kernels' own layout.

    a[t, :] = x[t, :] / sqrt(mean(x[t, :]²) + eps) * norm        or x, where there is no norm
    y[t, n] = Σ_k a[t, k] * w[n, k] + bias[n] + residual[t, n]
    gated:  w's rows are tiles of gate and up in turn, and
            y[t, n] = silu(gate[t, n]) * up[t, n]      or gelu_tanh, see gated_mul

Shape legend: T tokens, N output features, K input features, B bytes.

The pass pack-weights makes these ops of llm.quantized_matmul, llm.linear and their embeddings;
fuse-matmul gives them norm, residual and gated.  `weight` is what formats.packed makes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from llmir.dialect_ext.activations import OUTLIER, activations_are_known, allowed
from llmir.dialect_ext.argmax import Argmax
from llmir.dialect_ext.base import Array, Attribute, Call, Lowering, Op, Operand
from llmir.dialect_ext.c_kernels import PROVIDER, kernel_lowering, needs_kernels
from llmir.dialect_ext.c_matmul import PLANES, argmax_plan, embedding_plan, matmul_plan, top_plan
from llmir.dialect_ext.gated_mul import GATES
from llmir.dialect_ext.gpu_kernels import CUDA, KINDS, needs_gpu
from llmir.dialect_ext.gpu_matmul import (
    argmax_lowerings,
    embedding_lowerings,
    gpu_activations_of,
    matmul_lowerings,
)
from llmir.dialect_ext.topk import Topk, k_fits, topk_types
from llmir.dialect_ext.types import TensorType, is_static
from llmir.errors import CompileError
from llmir.formats import packed
from llmir.formats.base import QuantLayout
from llmir.formats.floats import to_bf16
from llmir.targets import Target

LARGEST_INT = {"int8": 127.0, "int8_16": 127.0, "int12": 2032.0, "int16": 32512.0}
"""The largest number that an activation is rounded to, of each precision of integers."""

LOW_STEPS = 254
"""Of int8_16: the steps of a low plane in one of the high."""


def activations_of(format_name: str) -> tuple[str, ...]:
    """The precisions that the kernels of a format compute with, the fastest first."""
    form = packed.FORMATS.get(format_name)
    if form is None:
        return ()
    if form.is_float:
        return ("bf16", "f32") if format_name == "bf16" else ("f32", "bf16")
    four_bits = form.bits == 4 and not form.table  # 16 w is a byte
    return (*(a for a in PLANES if four_bits or a not in ("int8_16", "int12")), "f32", "bf16")


class PackedMatmul(Op):
    """x f32[T, K], weight i8[B], norm f32[K]?, bias f32[N]?, residual f32[T, N]? → f32[T, N].

    format: of formats.packed.  activations: one of activations_of(format).  rows: N.
    gated: one of GATES, or "".
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
        Attribute(name="gated", kind=str, default=""),
        Attribute(name="eps", kind=float, default=0.0),
    )

    def check(self, call: Call) -> None:
        self.expect(*activations_are_known(call))
        _check_format(self, call)
        x, weight = call.type_of("x"), call.type_of("weight")
        rows, cols, gated = int(call.attrs["rows"]), x.shape[1], call.attrs["gated"]
        self.expect(
            gated == "" or gated in GATES,
            f"gated must be {', '.join(GATES)} or nothing, got {gated!r}",
        )
        self.expect(is_static(cols), f"K must be static, got x {x}")
        matrix_rows = rows * (2 if gated else 1)
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
            not gated or rows % packed.TILE_ROWS == 0,
            f"gated takes whole tiles of {packed.TILE_ROWS} rows in turn, got {rows} rows",
        )
        fused = call.operand("bias") or call.operand("residual")
        self.expect(not gated or fused is None, "gated takes no bias and no residual")

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
        gated: str,
        eps: float,
    ) -> Array:
        """With the activations rounded as the kernels round them."""
        a = x.astype(np.float32)
        if norm is not None:
            mean = np.mean(a.astype(np.float64) ** 2, axis=1, keepdims=True)
            a = (a / np.sqrt(mean + eps) * norm).astype(np.float32)
        a = rounded(a, activations)
        matrix_rows = rows * (2 if gated else 1)
        w = packed.unpack_matrix(format, weight.view(np.uint8), matrix_rows, x.shape[1])
        y = a.astype(np.float64) @ w.astype(np.float64).T
        if gated:
            tiles = y.reshape(len(y), rows // packed.TILE_ROWS, 2, packed.TILE_ROWS)
            gate, up = (tiles[:, :, i].reshape(len(y), rows) for i in (0, 1))
            y = GATES[gated](gate) * up
        for added in (bias, residual):
            y = y if added is None else y + added
        return y.astype(np.float32)

    @property
    def lowerings(self) -> tuple[Lowering, ...]:
        return (kernel_lowering(matmul_plan, _matmul_supports), *matmul_lowerings())


class PackedArgmax(Op):
    """argmax over n of y, of packed_matmul: x, weight, norm?, bias? → i32[T].

    -1 where the logits of a row are not all finite or -inf, as of llm.argmax.
    """

    name = "packed_argmax"
    from_torch = False
    operands = PackedMatmul.operands[:4]
    attributes = tuple(a for a in PackedMatmul.attributes if a.name != "gated")

    def check(self, call: Call) -> None:
        self._as_matmul(call)

    def result_types(self, call: Call) -> tuple[TensorType, ...]:
        return (TensorType((call.type_of("x").shape[0],), "i32"),)

    def reference(
        self, x: Array, weight: Array, norm: Array | None, bias: Array | None, **attrs: Any
    ) -> Array:
        logits = PackedMatmul().reference(x, weight, norm, bias, None, gated="", **attrs)
        return Argmax().reference(logits)

    @staticmethod
    def _as_matmul(call: Call) -> Call:
        return PackedMatmul().verify((*call.operands, None), call.attrs)

    @property
    def lowerings(self) -> tuple[Lowering, ...]:
        return (kernel_lowering(argmax_plan, _matmul_supports), *argmax_lowerings())


class PackedTopk(Op):
    """llm.topk of y, of packed_matmul: x, weight, norm?, bias? → f32[T, k], i32[T, k], f32[T]."""

    name = "packed_topk"
    from_torch = False
    num_results = 3
    operands = PackedArgmax.operands
    attributes = (*PackedArgmax.attributes, *Topk.attributes)

    def check(self, call: Call) -> None:
        matmul = {a.name: call.attrs[a.name] for a in PackedArgmax.attributes}
        PackedMatmul().verify((*call.operands, None), matmul)
        self.expect(*k_fits(int(call.attrs["k"]), int(call.attrs["rows"])))

    def result_types(self, call: Call) -> tuple[TensorType, ...]:
        return topk_types(call.type_of("x").shape[0], int(call.attrs["k"]))

    def reference(
        self, x: Array, weight: Array, norm: Array | None, bias: Array | None, **attrs: Any
    ) -> tuple[Array, ...]:
        k = attrs.pop("k")
        logits = PackedMatmul().reference(x, weight, norm, bias, None, gated="", **attrs)
        return Topk().reference(logits, k=k)

    @property
    def lowerings(self) -> tuple[Lowering, ...]:
        return (kernel_lowering(top_plan, _matmul_supports),)


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
            kernel_lowering(embedding_plan, lambda call, target: needs_kernels(target)),
            *embedding_lowerings(),
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


PACKERS = {PROVIDER: activations_of, CUDA: gpu_activations_of}
"""The providers that read packed weights → the precisions that they have for a format."""


def packing_refusal(
    call: Call, target: Target, cols: int, activations: str | None = None
) -> str | None:
    """Why the weight of a call cannot be packed for a target, None if it can.

    activations: what the call's attribute of that name says, if it has one
    """
    format_name = packed_format(call, cols)
    if format_name is None:
        return f"no packed layout for {call.attrs['format'] or 'planes of no named format'}"
    if cols % packed.BLOCK:
        return f"K = {cols} is not a multiple of {packed.BLOCK}"
    there = PACKERS[CUDA if target.kind == "cuda" else PROVIDER](format_name)
    if not there:
        return f"no kernels for {format_name}"
    if activations is not None and not set(there) & set(allowed(activations)):
        return f"activations are {' or '.join(there)} here, not {activations}"
    return None


def packed_lowerings(supports: Callable[[Call, Target], str | None]) -> tuple[Lowering, ...]:
    """The kernels' lowerings of an op that reads a weight: pack-weights makes it a packed one.

    supports: asked for targets that have kernels.
    """

    def emit(call: Call, symbol: str) -> str:
        raise CompileError(f"llm.{call.op.name} of kernels is for pack-weights; run it first")

    return (
        Lowering(
            provider=PROVIDER,
            supports=lambda call, target: needs_kernels(target) or supports(call, target),
            emit=emit,
            rewritten_by="pack-weights",
        ),
        Lowering(
            provider=CUDA,
            supports=lambda call, target: needs_gpu(CUDA, target) or supports(call, target),
            emit=emit,
            kinds=KINDS[CUDA],
            rewritten_by="pack-weights",
        ),
    )


def rounded(a: Array, activations: str) -> Array:
    """float32 [T, K] as the kernels see it: integers in blocks of 32.  See activations.h."""
    if activations == "f32":
        return a
    if activations == "bf16":
        return (to_bf16(a).astype(np.uint32) << np.uint32(16)).view(np.float32)
    blocks = a.reshape(len(a), a.shape[1] // packed.BLOCK, packed.BLOCK).astype(np.float32)
    largest = np.abs(blocks).max(axis=2, keepdims=True)
    largest_int = np.float32(LARGEST_INT[activations])
    scale = (largest / largest_int).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(largest > 0, largest_int / largest, 0).astype(np.float32)
    near = (np.rint(blocks * inverse) * scale).astype(np.float32)
    if activations == "int8_16":
        step = np.where(over_outlier(blocks) > 1, scale / np.float32(LOW_STEPS), 0)
        off = np.divide(blocks - near, step, out=np.zeros_like(blocks), where=step > 0)
        near = (near + np.rint(off) * step).astype(np.float32)
    return near.reshape(a.shape)


def over_outlier(blocks: Array) -> Array:
    """float32 [T, blocks, 32] → float64 [T, blocks, 1]: their largest, of OUTLIER times the row's
    root mean square; 0 in a row of zeros."""
    wide = blocks.astype(np.float64)
    limit = OUTLIER * np.sqrt(np.mean(wide**2, axis=(1, 2), keepdims=True))
    largest = np.abs(wide).max(axis=2, keepdims=True)
    return np.divide(largest, limit, out=np.zeros_like(largest), where=limit > 0)


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
