"""Draws for the ops on KV pages: ragged batches, shuffled pages, NaN wherever none may look.

Shape legend: T tokens, Hq query heads, H KV heads, D head dim, ps tokens a page.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from conformance import cases
from conformance.cases import AppendShape
from dialect_ext.lowered import from_bf16, to_bf16
from dialect_ext.ragged import Cache, Heads, Ragged

from llmir.dialect_ext.kv_formats import kv_type
from llmir.dialect_ext.registry import get_op

from .draw import Array, Draw, Sample, Verdict, f32, i32, near, normal
from .draws_of_rows import ROPE_POSITIONS, rope_table

DTYPES = ("f32", "f16", "bf16", "int8", "fp8")
HEADS = (Heads(), Heads(q=10, kv=2, dim=24, page_size=8), Heads(q=8, kv=2, dim=128))
LENGTHS = (40, 17, 33, 200, 1)
# A mixture, decodes of all, and two chunks of prompts: (sequence, start, end).
BATCHES = (
    [(0, 0, 40), (1, 16, 17), (2, 12, 33), (3, 199, 200), (4, 0, 1)],
    [(s, n - 1, n) for s, n in enumerate(LENGTHS)],
    [(3, 100, 163), (2, 0, 33)],
)


def _label(heads: Heads) -> str:
    return f"Hq={heads.q} H={heads.kv} D={heads.dim} ps={heads.page_size}"


def paged_attention() -> Iterator[Draw]:
    plain = {"scale": 0.125, "window": 0, "softcap": 0.0}
    bounded = {"scale": 0.2, "window": 20, "softcap": 2.0}
    for dtype in DTYPES:
        for heads, attrs in zip(HEADS, (plain, bounded, plain), strict=True):

            def samples(
                rng: np.random.Generator, heads: Heads = heads, attrs: Any = attrs, d: str = dtype
            ) -> list[Sample]:
                window = attrs["window"]
                cache = Cache(LENGTHS, heads, seed=int(rng.integers(1 << 30)))
                sinks = np.linspace(-5, 9, heads.q).astype(np.float32) if window else None
                return [
                    _attends(cache.batch(b, spare_columns=i, window=window), sinks, d, attrs)
                    for i, b in enumerate(BATCHES)
                ]

            label = _label(heads) + (" window softcap sinks" if attrs is bounded else "")
            yield Draw(
                op="paged_attention",
                dtype=dtype,
                label=label,
                types=(
                    f32(None, heads.q, heads.dim),
                    kv_type(dtype, heads.kv, heads.page_size, heads.dim),
                    i32(None, None),
                    *[i32(None)] * 4,
                    f32(heads.q) if attrs is bounded else None,
                ),
                attrs=attrs,
                samples=samples,
            )


def _attends(batch: Ragged, sinks: Array | None, dtype: str, attrs: Any) -> Sample:
    q, kv, *rest = batch.operands
    stored = cases.narrow(kv, dtype)
    reference = get_op("paged_attention").reference
    seen = stored if dtype in ("f32", "f16", "int8", "fp8") else cases.wide(stored, dtype)
    expected = reference(q, seen, *rest, sinks, **attrs)

    def judge(results: Any, is_kernel: bool) -> Verdict:
        verdict = near(results[0], expected, 1e-5 * (1 + np.abs(expected)))
        if verdict.passed or not is_kernel or dtype not in ("bf16", "f16"):
            return verdict
        # A kernel may round the scaled queries, and the weights, to the pages' type.
        scale = np.float32(attrs["scale"])
        scaled = q * scale
        scaled = from_bf16(to_bf16(scaled)) if dtype == "bf16" else scaled.astype(np.float16)
        near_q = scaled.astype(np.float32) / scale
        other = reference(near_q, seen, *rest, sinks, **attrs)
        wide = seen.astype(np.float32)
        magnitudes = np.concatenate([wide[:, :1], np.abs(wide[:, 1:])], 1)
        sizes = reference(near_q, magnitudes, *rest, sinks, **attrs)
        slack = sizes * (2.0**-8 if dtype == "bf16" else 2.0**-11) + 2e-5
        rounded = near(results[0], other, slack)
        return replace(verdict, share=rounded.share, problem=rounded.problem)

    return Sample(operands=[q, stored, *rest, sinks], judge=judge)


def append_kv() -> Iterator[Draw]:
    for dtype in DTYPES:
        for heads in HEADS:

            def samples(
                rng: np.random.Generator, heads: Heads = heads, dtype: str = dtype
            ) -> list[Sample]:
                return [_appends(rng, heads, dtype, *s) for s in ((3, 1, 0), (9, 7, 2), (9, 40, 3))]

            row = f32(None, heads.kv, heads.dim)
            yield Draw(
                op="append_kv",
                dtype=dtype,
                label=_label(heads),
                types=(
                    kv_type(dtype, heads.kv, heads.page_size, heads.dim),
                    row,
                    row,
                    i32(None),
                ),
                samples=samples,
            )


def _appends(
    rng: np.random.Generator, heads: Heads, dtype: str, pages: int, tokens: int, padding: int
) -> Sample:
    shape = AppendShape(heads=heads, pages=pages, T=tokens, padding=padding)
    slots, stored = cases.slots_of(shape, rng), cases.old_pages(shape, dtype, rng)
    k, v = (cases.rows_of_all_sizes(rng, len(slots), heads.kv, heads.dim) for _ in "kv")
    rows = [x if stored.dtype == np.int8 else cases.narrow(x, dtype) for x in (k, v)]
    expected = get_op("append_kv").reference(stored, *rows, slots)

    def judge(results: Any, is_kernel: bool) -> Verdict:
        return judge_pages(results[0], expected, stored, slots, heads, dtype)

    return Sample(operands=[stored, k, v, slots], judge=judge)


def judge_pages(
    y: Array,
    expected: Array,
    before: Array,
    slots: Array,
    heads: Heads,
    dtype: str,
    computed: float = 0.0,
) -> Verdict:
    """Stored pages: slots that nobody wrote keep their bits; page 0 is not looked at.

    computed: what a float32 number may be off by before it is stored, of its row's largest
    """
    kept = np.ones(before.shape, bool)
    kept[slots // heads.page_size, :, :, slots % heads.page_size] = False
    kept[0] = False
    if y.shape != before.shape or y[kept].tobytes() != before[kept].tobytes():
        return Verdict(problem="slots that are not the step's were changed")
    got, wanted = (cases.wide(x[1:], dtype) for x in (y, expected))
    largest = np.abs(np.where(np.isfinite(wanted), wanted, 0)).max(-1, keepdims=True)
    # An integer, or a float, may be the next one where a target divides or sums another way:
    # Vulkan's division may be off by 2.5 units in the last place.
    if dtype == "int8":
        slack = largest / 126 + 1e-30
    elif dtype == "fp8":
        slack = computed * (2.0**-3 * np.abs(wanted) + 2.0**-9) / (computed or 1)
    else:
        unit = {"f32": 2.0**-24, "f16": 2.0**-10, "bf16": 2.0**-7}[dtype]
        slack = computed * largest + (unit * np.abs(wanted) + 1e-7 if computed else 0.0)
    verdict = near(got, wanted, slack)
    if dtype == "int8" and verdict.passed:
        alike = np.isclose(got, wanted, rtol=1e-4, atol=1e-5, equal_nan=True).mean()
        if alike < 0.98:
            return replace(verdict, problem=f"{100 * (1 - alike):.1f} % are other integers")
    return verdict


def rope_append() -> Iterator[Draw]:
    for dtype in DTYPES:
        for heads, norms in ((HEADS[0], False), (HEADS[1], True), (HEADS[2], True)):

            def samples(
                rng: np.random.Generator, heads: Heads = heads, norms: bool = norms, d: str = dtype
            ) -> list[Sample]:
                return [_rope_appends(rng, heads, norms, d, *s) for s in ((3, 1, 0), (9, 40, 3))]

            norm = f32(heads.dim) if norms else None
            yield Draw(
                op="rope_append",
                dtype=dtype,
                label=_label(heads) + (" norms" if norms else ""),
                types=(
                    f32(None, (heads.q + 2 * heads.kv) * heads.dim),
                    i32(None),
                    f32(ROPE_POSITIONS, heads.dim),
                    i32(None),
                    kv_type(dtype, heads.kv, heads.page_size, heads.dim),
                    norm,
                    norm,
                ),
                attrs={"eps": 1e-6},
                samples=samples,
            )


def _rope_appends(
    rng: np.random.Generator,
    heads: Heads,
    norms: bool,
    dtype: str,
    pages: int,
    tokens: int,
    padding: int,
) -> Sample:
    shape = AppendShape(heads=heads, pages=pages, T=tokens, padding=padding)
    slots, stored = cases.slots_of(shape, rng), cases.old_pages(shape, dtype, rng)
    qkv = normal(rng, tokens, (heads.q + 2 * heads.kv) * heads.dim)
    table = rope_table(rng, heads.dim)
    positions = rng.integers(0, len(table), tokens).astype(np.int32)
    weights = [normal(rng, heads.dim) if norms else None for _ in "qk"]
    seen = stored if stored.dtype == np.int8 else cases.wide(stored, dtype)
    reference = get_op("rope_append").reference
    q, appended = reference(qkv, positions, table, slots, seen, *weights, eps=1e-6)
    expected = appended if seen is stored else cases.narrow(appended, dtype)

    def judge(results: Any, is_kernel: bool) -> Verdict:
        verdict = near(results[0], q, 1e-5 * (1 + np.abs(q).max(initial=0)))
        pages = judge_pages(results[1], expected, stored, slots, heads, dtype, computed=1e-5)
        return verdict.worse(pages)

    return Sample(operands=[qkv, positions, table, slots, stored, *weights], judge=judge)
