"""Draws for the ops that read weights: floats, planes of every block format, packed matrices.

Shape legend: T tokens, N output features, K input features, V rows of a table.

What a matmul may be off by is what rounding can explain: sums of K numbers in float32, in any
order, and activations rounded as the op's attribute says.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from dialect_ext.lowered import from_bf16, to_bf16

from llmir import formats
from llmir.dialect_ext.activations import PRECISIONS
from llmir.dialect_ext.packed_matmul import LARGEST_INT
from llmir.dialect_ext.types import TensorType
from llmir.formats.base import GroupQuantized, QuantLayout
from llmir.formats.rounding import INT4_GROUP_SIZES

from .draw import Array, Draw, Sample, Verdict, f32, i32, near, normal, of_all_sizes

FLOATS = ("f32", "bf16", "f16")
ROUNDED = tuple(a for a in PRECISIONS if a != "f32")


def layouts(columns: int) -> dict[str, tuple[QuantLayout, str]]:
    """Planes by the name of what is stored so: (layout, the `format` attribute of the ops).

    columns: of which those formats are left out that have no whole groups
    """
    found = {"int8": (QuantLayout(bits=8, group_size=columns), "int8")}
    if columns % 256:
        return found
    found |= {
        name: (layout, name)
        for name in formats.names()
        if (layout := formats.get(name).layout) is not None
    }
    for size in INT4_GROUP_SIZES:
        plain = QuantLayout(bits=4, group_size=size, zero_point=8)
        with_mins = QuantLayout(bits=4, group_size=size, has_mins=True)
        found[f"int4-g{size}"] = plain, f"int4-g{size}"
        found[f"int4-g{size}-zp"] = with_mins, f"int4-g{size}-zp"
    return found


def planes(
    rng: np.random.Generator, layout: QuantLayout, rows: int, columns: int
) -> GroupQuantized:
    """A quantised matrix of any integers."""
    groups = columns // layout.group_size
    return GroupQuantized(
        layout=layout,
        quants=rng.integers(-128, 128, (rows, groups, layout.group_bytes)).astype(np.int8),
        scales=rng.uniform(-0.02, 0.02, (rows, groups)).astype(np.float32),
        mins=rng.normal(0, 0.1, (rows, groups)).astype(np.float32) if layout.has_mins else None,
    )


def stored(values: Array, dtype: str) -> tuple[Array, Array]:
    """float32 values as a tensor of that type holds them, and what these read as."""
    if dtype == "bf16":
        bits = to_bf16(values)
        return bits, from_bf16(bits)
    narrow = values.astype({"f32": np.float32, "f16": np.float16}[dtype])
    return narrow, narrow.astype(np.float32)


# --- tables


def embedding() -> Iterator[Draw]:
    for dtype in FLOATS:
        for rows, columns in ((33, 37), (500, 64)):

            def samples(
                rng: np.random.Generator, dtype: str = dtype, shape: Any = (rows, columns)
            ) -> list[Sample]:
                table, wide = stored(normal(rng, *shape), dtype)
                return [looked_up([table], wide, ids) for ids in some_ids(rng, shape[0])]

            types = (i32(None), TensorType((rows, columns), dtype))
            label = f"V={rows} K={columns}"
            yield Draw(op="embedding", dtype=dtype, label=label, types=types, samples=samples)


def quantized_embedding() -> Iterator[Draw]:
    yield from _quantized_tables(33, 256)
    yield from _quantized_tables(7, 37)


def _quantized_tables(rows: int, columns: int) -> Iterator[Draw]:
    for name, (layout, format_name) in layouts(columns).items():

        def samples(rng: np.random.Generator, layout: QuantLayout = layout) -> list[Sample]:
            table = planes(rng, layout, rows, columns)
            wide = table.dequantize()
            # With a multiply-add a number is rounded once, without it twice.
            slack = 2e-7 * (_sizes(table) + 1e-3)
            operands = [table.quants, table.scales, table.mins]
            return [looked_up(operands, wide, ids, slack) for ids in some_ids(rng, rows)]

        types = (i32(None), *_plane_types(layout, rows, columns))
        yield Draw(
            op="quantized_embedding",
            dtype=name,
            label=f"V={rows} K={columns}",
            types=types,
            attrs=_plane_attrs(layout, format_name),
            samples=samples,
        )


def some_ids(rng: np.random.Generator, rows: int) -> Iterator[Array]:
    for tokens in (1, 7, 40):
        ids = rng.integers(0, rows, tokens).astype(np.int32)
        ids[:2] = (rows - 1, 0)[:tokens]
        yield ids


def looked_up(
    table: list[Array | None], wide: Array, ids: Array, slack: Array | float = 0.0
) -> Sample:
    allowed = slack[ids] if isinstance(slack, np.ndarray) else slack
    return Sample(
        operands=[ids, *table], judge=lambda results, _: near(results[0], wide[ids], allowed)
    )


def _plane_types(layout: QuantLayout, rows: int, columns: int) -> list[TensorType | None]:
    groups = columns // layout.group_size
    return [
        TensorType((rows, groups, layout.group_bytes), "i8"),
        f32(rows, groups),
        f32(rows, groups) if layout.has_mins else None,
    ]


def _plane_attrs(layout: QuantLayout, format_name: str) -> dict[str, Any]:
    return {
        "bits": layout.bits,
        "group_size": layout.group_size,
        "zero_point": layout.zero_point,
        "format": format_name,
    }


def _sizes(matrix: GroupQuantized) -> Array:
    """|(q - zero) s| + |min| of each element: what its rounding is relative to."""
    if matrix.mins is None:
        return np.abs(matrix.dequantize())
    zero_mins = GroupQuantized(
        layout=matrix.layout, quants=matrix.quants, scales=matrix.scales, mins=matrix.mins * 0
    )
    mins = np.repeat(np.abs(matrix.mins), matrix.layout.group_size, axis=1)
    return np.abs(zero_mins.dequantize()) + mins


# --- matmuls of floats and of planes

SHAPES = ((7, 256, True, (1, 3, 17)), (130, 512, False, (1, 5, 66)), (7, 37, True, (1, 3, 17)))
"""N, K, with a bias, T of the samples."""


def linear() -> Iterator[Draw]:
    for dtype in FLOATS:
        for rows, columns, bias, tokens in SHAPES[1:]:
            for activations in ("f32", *ROUNDED):

                def samples(
                    rng: np.random.Generator,
                    dtype: str = dtype,
                    shape: Any = (rows, columns, bias, tokens, activations),
                ) -> list[Sample]:
                    weight, wide = stored(normal(rng, *shape[:2]), dtype)
                    return _products(rng, [weight], wide, np.abs(wide), *shape[2:])

                yield Draw(
                    op="linear",
                    dtype=with_activations(dtype, activations),
                    label=f"N={rows} K={columns}",
                    types=(
                        f32(None, columns),
                        TensorType((rows, columns), dtype),
                        f32(rows) if bias else None,
                    ),
                    attrs={"activations": activations},
                    samples=samples,
                )


def quantized_matmul() -> Iterator[Draw]:
    for rows, columns, bias, tokens in SHAPES:
        for name, (layout, format_name) in layouts(columns).items():
            for activations in ("f32", *ROUNDED):

                def samples(
                    rng: np.random.Generator,
                    layout: QuantLayout = layout,
                    shape: Any = (rows, columns, bias, tokens, activations),
                ) -> list[Sample]:
                    weight = planes(rng, layout, *shape[:2])
                    operands = [weight.quants, weight.scales, weight.mins]
                    return _products(rng, operands, weight.dequantize(), _sizes(weight), *shape[2:])

                yield Draw(
                    op="quantized_matmul",
                    dtype=with_activations(name, activations),
                    label=f"N={rows} K={columns}",
                    types=(
                        f32(None, columns),
                        *_plane_types(layout, rows, columns),
                        f32(rows) if bias else None,
                    ),
                    attrs={**_plane_attrs(layout, format_name), "activations": activations},
                    samples=samples,
                )


def with_activations(dtype: str, activations: str) -> str:
    return dtype if activations == "f32" else f"{dtype} × {activations}"


def _products(
    rng: np.random.Generator,
    weight: list[Array | None],
    wide: Array,
    sizes: Array,
    bias: bool,
    tokens: tuple[int, ...],
    activations: str,
) -> list[Sample]:
    found = []
    added = normal(rng, len(wide)) if bias else None
    for count in tokens:
        x = of_all_sizes(rng, count, wide.shape[1])
        expected = x.astype(np.float64) @ wide.astype(np.float64).T
        if added is not None:
            expected += added
        slack = np.abs(x).astype(np.float64) @ sizes.T * (6e-8 * (wide.shape[1] + 12)) + 1e-6
        slack += _rounding(x, activations) @ np.abs(wide).T

        def judge(
            results: Any, _: bool, expected: Array = expected, slack: Array = slack
        ) -> Verdict:
            return near(results[0], expected, slack)

        found.append(Sample(operands=[x, *weight, added], judge=judge))
    return found


def _rounding(x: Array, activations: str) -> Array:
    """What rounding changes an activation by at most, whatever the blocks."""
    if activations == "f32":
        return np.zeros_like(x, np.float64)
    if activations == "bf16":
        return np.abs(x).astype(np.float64) * 2.0**-8
    largest = np.abs(x).max(axis=1, keepdims=True).astype(np.float64)
    return np.broadcast_to(largest / LARGEST_INT[activations], x.shape)
