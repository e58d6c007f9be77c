"""Cases for the C kernels: operands of an op, drawn at random, and what its results may be.

Shape legend: T tokens, N output features, K input features, V rows of a table, S sequences,
Hq query heads, H KV heads, D head dim, ps tokens a page.

Whatever a kernel must not read is NaN: slots that nobody has written, freed pages, page 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from dialect_ext.lowered import from_bf16, to_bf16
from dialect_ext.ragged import Heads, Ragged

from llmir import formats
from llmir.dialect_ext import kv_formats
from llmir.dialect_ext.base import AttrValue
from llmir.dialect_ext.c_pages import in_columns, in_rows
from llmir.dialect_ext.gated_mul import GATES
from llmir.dialect_ext.kv_formats import kv_type
from llmir.dialect_ext.packed_matmul import LARGEST_INT, LOW_STEPS, over_outlier, rounded
from llmir.dialect_ext.registry import get_op
from llmir.dialect_ext.types import TensorType
from llmir.formats import packed

from .lowered_calls import Array, Lowered, Machine, Runs

Check = Callable[[list[Array]], None]


@dataclass(frozen=True)
class Case:
    """One call of an op: `case.run(machine)`, and `check` of what it gives."""

    lowered: Runs
    operands: Sequence[Array | None]
    check: Check = field(repr=False)

    def run(self, machine: Machine, *, workers: int = 2) -> list[Array]:
        return self.lowered(machine, self.operands, workers=workers)


def lowered(op: str, types: Sequence[TensorType | None], **attrs: AttrValue) -> Lowered:
    return Lowered(get_op(op), types, attrs)


def f32(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape, dtype=np.float32)


# --- matmuls and tables


@dataclass(frozen=True, kw_only=True)
class MatmulShape:
    T: int
    N: int
    K: int
    norm: bool = False
    bias: bool = False
    residual: bool = False
    gated: str = ""
    seed: int = 0


def packed_weight(rng: np.random.Generator, format_name: str, rows: int, cols: int) -> Array:
    """A packed matrix of any bits, but for its scales and minima, which are sane floats."""
    form = packed.FORMATS[format_name]
    if form.is_float:
        return packed_floats(rng, format_name, rows, cols)
    size, num_bytes = form.section_bytes(cols), form.num_bytes(rows, cols)
    sections = rng.integers(0, 256, (num_bytes // size, size), np.uint8)
    if form.bits == 8:
        # Bytes are b + 128 of a signed b.
        sections[0, -4:] = (0, 255, 128, 1)
    at = 0
    for part in form.header:
        if "f" in part.dtype:
            # Those that an integer of up to 127 multiplies are smaller.
            most = 0.02 if part.name in ("scale", "min") else 0.0005
            numbers = rng.uniform(-most, most, (len(sections), 16 * part.count)).astype(part.dtype)
            sections[:, at : at + part.num_bytes] = numbers.view(np.uint8)
        at += part.num_bytes
    return sections.reshape(-1).view(np.int8)


def packed_floats(rng: np.random.Generator, format_name: str, rows: int, cols: int) -> Array:
    """A packed matrix of normal numbers."""
    return pack_floats(format_name, rng.standard_normal((rows, cols), np.float32))


def pack_floats(format_name: str, values: Array) -> Array:
    stored = to_bf16(values) if format_name == "bf16" else values.astype(f"f{_ITEM[format_name]}")
    weight = formats.Weight(
        name="w",
        shape=tuple(values.shape),
        format=formats.get(format_name),
        raw=stored.reshape(-1).view("u1"),
    )
    return packed.pack_matrix(format_name, weight).reshape(-1).view(np.int8)


_ITEM = {"f32": 4, "f16": 2}


def matmul(format_name: str, activations: str, shape: MatmulShape) -> Case:
    """llm.packed_matmul; rows of x differ in size, and one is zeros."""
    rng = np.random.default_rng(shape.seed)
    matrix_rows = shape.N * (2 if shape.gated else 1)
    weight = packed_weight(rng, format_name, matrix_rows, shape.K)
    x = np.ldexp(f32(rng, shape.T, shape.K), rng.integers(-6, 7, (shape.T, 1), np.int32))
    if activations == "int8_16":
        x[rng.random(x.shape) < 1 / 128] *= 40  # outliers
    x[shape.T // 2 : shape.T // 2 + 1] = 0
    norm = f32(rng, shape.K) if shape.norm else None
    bias = f32(rng, shape.N) if shape.bias else None
    residual = f32(rng, shape.T, shape.N) if shape.residual else None
    operands = [x, weight, norm, bias, residual]
    vectors = [None if v is None else TensorType(tuple(v.shape), "f32") for v in (norm, bias)]
    types = [
        TensorType((None, shape.K), "f32"),
        TensorType(tuple(weight.shape), "i8"),
        *vectors,
        TensorType((None, shape.N), "f32") if shape.residual else None,
    ]
    attrs = {
        "format": format_name,
        "activations": activations,
        "rows": shape.N,
        "gated": shape.gated,
        "eps": 1e-5,
    }
    made = lowered("packed_matmul", types, **attrs)

    def check(results: list[Array]) -> None:
        (y,) = results
        expected = made.op.reference(*operands, **attrs)
        slack = matmul_slack(operands, attrs)
        assert y.shape == expected.shape
        assert np.isfinite(y).all(), "something that nobody wrote was read, or not all was written"
        worst = np.abs(y.astype(np.float64) - expected) - slack
        assert (worst <= 0).all(), f"off by {worst.max()} more than rounding explains"

    return Case(made, operands, check)


def gate(gated: str) -> Case:
    """llm.packed_matmul whose gate is each of many numbers, also very large ones, and up is 1."""
    sizes = np.concatenate([[0], np.geomspace(1e-30, 1e30, 200), np.linspace(0.1, 20, 200)])
    x = np.zeros((2 * len(sizes), packed.BLOCK), np.float32)
    x[:, 0], x[:, 1] = [*sizes, *-sizes], 1
    both = np.zeros((32, packed.BLOCK), np.float32)
    both[:16, 0] = both[16:, 1] = 1
    weight = pack_floats("f32", both)
    types = [TensorType((None, packed.BLOCK), "f32"), TensorType(tuple(weight.shape), "i8")]
    attrs = {"format": "f32", "activations": "f32", "rows": 16, "gated": gated}
    made = lowered("packed_matmul", [*types, None, None, None], **attrs)

    def check(results: list[Array]) -> None:
        expected = np.repeat(GATES[gated](x[:, :1].astype(np.float64)), 16, axis=1)
        np.testing.assert_allclose(results[0], expected, rtol=2e-6, atol=1e-7)

    return Case(made, [x, weight, None, None, None], check)


def best(
    format_name: str, activations: str, shape: MatmulShape, special: Array | None, k: int = 0
) -> tuple[Case, Case]:
    """llm.packed_matmul, and llm.packed_argmax of the same operands, or llm.packed_topk of k.

    special: what stands in the bias, from its middle on
    """
    logits = matmul(format_name, activations, shape)
    x, weight, norm, bias, _ = logits.operands
    assert bias is not None
    if special is not None:
        at = min(shape.N // 2, shape.N - len(special))
        bias[at : at + len(special)] = special
    assert isinstance(logits.lowered, Lowered)
    attrs = {k: v for k, v in logits.lowered.attrs.items() if k != "gated"}
    if k:
        attrs["k"] = k
    name = "packed_topk" if k else "packed_argmax"
    made = lowered(name, logits.lowered.types[:4], **attrs)
    return logits, Case(made, [x, weight, norm, bias], lambda results: None)


def matmul_slack(operands: Sequence[Array | None], attrs: Mapping[str, Any]) -> Array:
    """How far a result may be from the reference, float64 [T, N]: float32 sums, and activations
    that lie so near the middle of two integers that another order of the norm's sum decides."""
    x, weight, norm, *_ = operands
    assert x is not None
    assert weight is not None
    x = x.astype(np.float32)
    if norm is not None:
        mean = np.mean(x.astype(np.float64) ** 2, axis=1, keepdims=True)
        x = (x / np.sqrt(mean + attrs["eps"]) * norm).astype(np.float32)
    a = np.abs(rounded(x, attrs["activations"])).astype(np.float64)
    if norm is not None and attrs["activations"] in ("f32", "bf16"):
        # bf16 has eight bits.
        with np.errstate(divide="ignore", invalid="ignore"):
            spacing = np.exp2(np.floor(np.log2(np.abs(x.astype(np.float64)))) - 7)
            q = np.where(spacing > 0, np.abs(x) / spacing, 0)
        undecided = (np.abs(q % 1 - 0.5) < 1e-3) & (attrs["activations"] == "bf16")
        step = np.where(undecided, spacing, 0)
    elif norm is not None:
        most, blocks = LARGEST_INT[attrs["activations"]], blocks_of(x)
        scale = blocks.max(axis=2, keepdims=True, initial=0) / most
        with np.errstate(divide="ignore", invalid="ignore"):
            q = np.where(scale > 0, blocks / scale, 0)
        undecided = np.abs(q % 1 - 0.5) < 1e-6 + q * 2e-6
        step = np.where(undecided, scale, 0).reshape(a.shape)
    else:
        step = np.zeros_like(a)
    if attrs["activations"] == "int8_16":
        # Where a low plane makes up for either choice, one step of it; but for blocks so near to an
        # outlier that the order of a sum decides whether there is one.
        blocks = blocks_of(x)
        over, scale = over_outlier(blocks), blocks.max(axis=2, keepdims=True, initial=0) / 127
        fine = np.broadcast_to(over > 1, blocks.shape).reshape(step.shape)
        undecided = np.broadcast_to(np.where(np.abs(over - 1) < 1e-5, scale, 0), blocks.shape)
        low = np.broadcast_to(scale / LOW_STEPS, blocks.shape).reshape(step.shape)
        step = np.maximum(np.where(fine, low, step), undecided.reshape(step.shape))
    matrix_rows = attrs["rows"] * (2 if attrs["gated"] else 1)
    w = packed.unpack_matrix(
        attrs["format"], weight.view(np.uint8), matrix_rows, a.shape[1]
    ).astype(np.float64)
    # u and the minimum are summed apart: where they cancel, their own sizes count.
    form = packed.FORMATS[attrs["format"]]
    largest = np.abs(w) + 2 * np.abs(w).max(initial=0) * form.has_min
    # A chain of additions: over the blocks; of floats, within one too; of pairs of bf16, over K.
    longest = a.shape[1] // packed.BLOCK + 12
    if attrs["activations"] in ("f32", "bf16"):
        longest += a.shape[1] if attrs["format"] == "bf16" else packed.BLOCK
    sums = a @ largest.T * (1e-7 * longest) + step @ np.abs(w).T
    if not attrs["gated"]:
        return sums + 1e-6
    y = rounded(x, attrs["activations"]).astype(np.float64) @ w.T
    gate, up = halves(y)
    d_gate, d_up = halves(sums)
    gated = np.abs(GATES[attrs["gated"]](gate))
    # No gate is steeper than 1.13.
    return 1.13 * d_gate * (np.abs(up) + d_up) + gated * d_up + 1e-6 * (gated * np.abs(up) + 1)


def blocks_of(x: Array) -> Array:
    """|x| as float64 [T, blocks, 32]."""
    return np.abs(x.astype(np.float64)).reshape(len(x), x.shape[1] // packed.BLOCK, packed.BLOCK)


def halves(both: Array) -> tuple[Array, Array]:
    """Columns of gate and of up, whose tiles take turns."""
    tiles = both.reshape(len(both), both.shape[1] // 32, 2, 16)
    gate, up = (tiles[:, :, i].reshape(len(both), both.shape[1] // 2) for i in (0, 1))
    return gate, up


def rows(format_name: str, num_tokens: int, num_rows: int, cols: int, seed: int) -> Case:
    """llm.packed_embedding: the reference's very bits."""
    rng = np.random.default_rng(seed)
    table = packed_weight(rng, format_name, num_rows, cols)
    ids = rng.integers(0, num_rows, num_tokens).astype(np.int32)
    ids[:2] = (num_rows - 1, 0)[: len(ids)]
    attrs = {"format": format_name, "rows": num_rows, "cols": cols}
    types = [TensorType((None,), "i32"), TensorType(tuple(table.shape), "i8")]
    made = lowered("packed_embedding", types, **attrs)

    def check(results: list[Array]) -> None:
        np.testing.assert_array_equal(results[0], made.op.reference(ids, table, **attrs))

    return Case(made, [ids, table], check)


# --- pages


def narrow(values: Array, dtype: str) -> Array:
    """float32 rows as a page stores them; bf16 as its bits."""
    return _NARROW[dtype](values)


_NARROW: dict[str, Callable[[Array], Array]] = {
    "f32": lambda x: x.astype(np.float32),
    "f16": lambda x: x.astype(np.float16),
    "bf16": to_bf16,
    "int8": kv_formats.to_int8,
    "fp8": kv_formats.to_fp8,
}


def wide(values: Array, dtype: str) -> Array:
    """float32 of rows as a page stores them."""
    of_bytes = {"bf16": from_bf16, "int8": kv_formats.from_int8, "fp8": kv_formats.from_fp8}
    return of_bytes[dtype](values) if dtype in of_bytes else values.astype(np.float32)


def attention(
    batch: Ragged,
    heads: Heads,
    dtype: str,
    *,
    window: int = 0,
    scale: float = 0.125,
    softcap: float = 0.0,
    with_sinks: bool = False,
) -> Case:
    """llm.paged_attention of a batch."""
    sinks = np.linspace(-5, 9, heads.q).astype(np.float32) if with_sinks else None
    q, kv, table, token_seq, positions, query_start, context_len = batch.operands
    stored = narrow(kv, dtype)
    types = [
        TensorType((None, heads.q, heads.dim), "f32"),
        kv_type(dtype, heads.kv, heads.page_size, heads.dim),
        TensorType((None, None), "i32"),
        *[TensorType((None,), "i32")] * 4,
        TensorType((heads.q,), "f32") if with_sinks else None,
    ]
    attrs = {"window": window, "softcap": softcap}
    made = lowered("paged_attention", types, scale=scale, **attrs)
    rest = (table, token_seq, positions, query_start, context_len, sinks)

    def check(results: list[Array]) -> None:
        (y,) = results
        assert np.isfinite(y).all(), "something that nobody wrote was read, or not all was written"
        if dtype == "bf16":
            # The kernel rounds the scaled queries, and the weights, to bf16.
            values = wide(stored, dtype)
            scaled = from_bf16(to_bf16(q * np.float32(scale)))
            expected = made.op.reference(scaled, values, *rest, scale=1.0, **attrs)
            magnitudes = np.concatenate([values[:, :1], np.abs(values[:, 1:])], 1)
            sizes = made.op.reference(scaled, magnitudes, *rest, scale=1.0, **attrs)
            slack = sizes * 2.0**-8 + 2e-5
        else:
            expected = made.op.reference(q, stored, *rest, scale=scale, **attrs)
            slack = 1e-5 * (1 + np.abs(expected))
        worst = np.abs(y - expected) - slack
        assert (worst <= 0).all(), f"off by {worst.max()} more than rounding explains"

    return Case(made, [q, in_columns(stored, dtype), *rest], check)


@dataclass(frozen=True, kw_only=True)
class AppendShape:
    """pages of the pool; padding: tokens that share slot 0, whose page nobody reads."""

    heads: Heads
    pages: int
    T: int
    padding: int = 0
    q_norm: bool = False
    k_norm: bool = False
    seed: int = 0


def slots_of(shape: AppendShape, rng: np.random.Generator) -> Array:
    free = np.arange(shape.heads.page_size, shape.pages * shape.heads.page_size)
    chosen = rng.permutation(free)[: shape.T]
    chosen[: shape.padding] = 0
    return rng.permutation(chosen).astype(np.int32)


def old_pages(shape: AppendShape, dtype: str, rng: np.random.Generator) -> Array:
    h = shape.heads
    return narrow(f32(rng, shape.pages, 2, h.kv, h.page_size, h.dim), dtype)


def rows_of_all_sizes(rng: np.random.Generator, *shape: int) -> Array:
    """Rows of all sizes; some of zeros, some with a number that is none, or a very large one."""
    x = np.ldexp(f32(rng, *shape), rng.integers(-12, 12, (*shape[:-1], 1), np.int32))
    which = rng.integers(0, 12, shape[:-1])
    x[which == 0] = 0
    for i, value in enumerate((np.nan, np.inf, -1e4)):
        x[which == i + 1, rng.integers(0, shape[-1])] = value
    return x


def append(shape: AppendShape, dtype: str) -> Case:
    """llm.append_kv: the very bits, and not one beside them."""
    rng = np.random.default_rng(shape.seed)
    slots, h = slots_of(shape, rng), shape.heads
    stored = old_pages(shape, dtype, rng)
    k, v = (rows_of_all_sizes(rng, len(slots), h.kv, h.dim) for _ in "kv")
    row = TensorType((None, h.kv, h.dim), "f32")
    types = [
        kv_type(dtype, h.kv, h.page_size, h.dim),
        row,
        row,
        TensorType((None,), "i32"),
    ]
    made = lowered("append_kv", types)

    def check(results: list[Array]) -> None:
        rows = [x if stored.dtype == np.int8 else narrow(x, dtype) for x in (k, v)]
        expected = made.op.reference(stored, *rows, slots)
        assert results[0][1:].tobytes() == in_columns(expected, dtype)[1:].tobytes()

    return Case(made, [in_columns(stored, dtype), k, v, slots], check)


def rope_append(shape: AppendShape, dtype: str) -> Case:
    """llm.rope_append.  Untouched slots keep their bits; keys are rounded from near values."""
    rng = np.random.default_rng(shape.seed)
    slots, h = slots_of(shape, rng), shape.heads
    stored = old_pages(shape, dtype, rng)
    qkv = f32(rng, len(slots), (h.q + 2 * h.kv) * h.dim)
    positions = rng.integers(0, 50, len(slots)).astype(np.int32)
    angles = rng.uniform(0, 7, (50, h.dim // 2))
    table = np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    norms = [f32(rng, h.dim) if there else None for there in (shape.q_norm, shape.k_norm)]
    norm_types = [None if n is None else TensorType((h.dim,), "f32") for n in norms]
    index = TensorType((None,), "i32")
    types = [
        TensorType((None, qkv.shape[1]), "f32"),
        index,
        TensorType((50, h.dim), "f32"),
        index,
        kv_type(dtype, h.kv, h.page_size, h.dim),
        *norm_types,
    ]
    made = lowered("rope_append", types, eps=1e-6)

    def check(results: list[Array]) -> None:
        y, pages = results
        kv = stored if stored.dtype == np.int8 else wide(stored, dtype)
        q, expected = made.op.reference(qkv, positions, table, slots, kv, *norms, eps=1e-6)
        np.testing.assert_allclose(y, q, rtol=0, atol=1e-5 * (1 + np.abs(q).max(initial=0)))
        near = wide(expected, dtype)[1:] if kv is stored else expected[1:]
        got = wide(in_rows(pages, dtype), dtype)[1:]
        rtol = {"f32": 1e-5, "f16": 2.0**-10, "bf16": 2.0**-7, "int8": 1e-5, "fp8": 2.0**-3}[dtype]
        # An integer may be the next one: a step is a 127th of the row's largest.
        step = np.abs(near).max(-1, keepdims=True) / 126 if dtype == "int8" else 0
        least = 2.0**-9 if dtype == "fp8" else 1e-5
        assert (np.abs(got - near) <= rtol * np.abs(near) + least + step).all()
        if kv is stored:  # both are rounded, nearly all to the same number
            assert np.isclose(got, near, rtol=1e-4, atol=1e-5).mean() > 0.98
        kept = np.ones(stored.shape, bool)
        kept[slots // h.page_size, :, :, slots % h.page_size] = False
        kept, before = (in_columns(a, dtype)[1:] for a in (kept, stored))
        assert pages[1:][kept].tobytes() == before[kept].tobytes()

    operands = [qkv, positions, table, slots, in_columns(stored, dtype), *norms]
    return Case(made, operands, check)
