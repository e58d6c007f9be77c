"""Draws for the ops on packed matrices, which passes make for the kernels that stream them.

Shape legend: T tokens, N output features, K input features, V rows of a table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from conformance import cases

from llmir.dialect_ext.packed_matmul import activations_of
from llmir.dialect_ext.registry import get_op
from llmir.dialect_ext.types import TensorType
from llmir.formats import packed

from .draw import Array, Draw, Sample, Verdict, exact, f32, i32, near, normal, of_all_sizes
from .draws_of_rows import judge_topk
from .draws_of_weights import looked_up, some_ids, with_activations


def packed_embedding() -> Iterator[Draw]:
    rows, columns = 33, 256
    for name in packed.FORMATS:

        def samples(rng: np.random.Generator, name: str = name) -> list[Sample]:
            table = cases.packed_weight(rng, name, rows, columns)
            wide = packed.unpack_matrix(name, table.view(np.uint8), rows, columns)
            return [looked_up([table], wide, ids) for ids in some_ids(rng, rows)]

        yield Draw(
            op="packed_embedding",
            dtype=name,
            label=f"V={rows} K={columns}",
            types=(i32(None), _packed_type(name, rows, columns)),
            attrs={"format": name, "rows": rows, "cols": columns},
            samples=samples,
        )


def _packed_type(name: str, rows: int, columns: int) -> TensorType:
    return TensorType((packed.FORMATS[name].num_bytes(rows, columns),), "i8")


PACKED_COLUMNS = 256
# What is fused, N, T of the samples: a shape takes one of them in turn.
FUSED: tuple[tuple[dict[str, Any], int, tuple[int, ...]], ...] = (
    ({}, 33, (1, 3, 18)),
    ({"norm": True, "bias": True, "residual": True}, 40, (1, 4, 21)),
    ({"norm": True, "gated": "silu"}, 32, (1, 2, 19)),
    ({"gated": "gelu_tanh"}, 48, (1, 6, 33)),
)


def packed_matmul() -> Iterator[Draw]:
    for name in packed.FORMATS:
        for i, activations in enumerate(activations_of(name)):
            for with_parts, rows, tokens in (FUSED[0], FUSED[1 + i % 3]):
                yield _packed_draw(name, activations, rows, tokens, with_parts)


def _packed_draw(
    name: str, activations: str, rows: int, tokens: tuple[int, ...], parts: Mapping[str, Any]
) -> Draw:
    shape = cases.MatmulShape(T=1, N=rows, K=PACKED_COLUMNS, **parts)
    gated = str(parts.get("gated", ""))
    attrs = {
        "format": name,
        "activations": activations,
        "rows": rows,
        "gated": gated,
        "eps": 1e-5,
    }

    def samples(rng: np.random.Generator) -> list[Sample]:
        weight = cases.packed_weight(rng, name, rows * (2 if gated else 1), PACKED_COLUMNS)
        norm = normal(rng, PACKED_COLUMNS) if shape.norm else None
        bias = normal(rng, rows) if shape.bias else None
        found = []
        for count in tokens:
            residual = normal(rng, count, rows) if shape.residual else None
            operands = [of_all_sizes(rng, count, PACKED_COLUMNS), weight, norm, bias, residual]
            expected = get_op("packed_matmul").reference(*operands, **attrs)
            slack = cases.matmul_slack(operands, attrs)

            def judge(results: Any, _: bool, e: Array = expected, s: Array = slack) -> Verdict:
                return near(results[0], e, s)

            found.append(Sample(operands=operands, judge=judge))
        return found

    return Draw(
        op="packed_matmul",
        dtype=with_activations(name, activations),
        label=f"N={rows} " + " ".join(parts),
        types=(
            f32(None, PACKED_COLUMNS),
            _packed_type(name, rows * (2 if gated else 1), PACKED_COLUMNS),
            f32(PACKED_COLUMNS) if shape.norm else None,
            f32(rows) if shape.bias else None,
            f32(None, rows) if shape.residual else None,
        ),
        attrs=attrs,
        samples=samples,
    )


def packed_argmax() -> Iterator[Draw]:
    yield from _packed_best("packed_argmax", 0)


def packed_topk() -> Iterator[Draw]:
    yield from _packed_best("packed_topk", 8)


def _packed_best(op: str, k: int) -> Iterator[Draw]:
    """Logits that are whole numbers, so that every order of the sums gives the same ones."""
    rows = 100
    for name in ("f32", "bf16"):
        for activations in activations_of(name):
            attrs: dict[str, Any] = {"format": name, "activations": activations, "rows": rows}
            if k:
                attrs["k"] = k

            def samples(
                rng: np.random.Generator, name: str = name, attrs: Any = attrs
            ) -> list[Sample]:
                values = rng.integers(-3, 4, (rows, PACKED_COLUMNS)).astype(np.float32)
                weight = cases.pack_floats(name, values)
                found = []
                for tokens in (1, 4, 19):
                    x = rng.integers(-2, 3, (tokens, PACKED_COLUMNS)).astype(np.float32)
                    given = get_op(op).reference(x, weight, None, None, **{"eps": 0.0, **attrs})
                    judge = (
                        judge_topk(*given)
                        if k
                        else lambda results, _, given=given: exact(results[0], given)
                    )
                    found.append(Sample(operands=[x, weight, None, None], judge=judge))
                return found

            yield Draw(
                op=op,
                dtype=with_activations(name, activations),
                label=f"V={rows}",
                types=(
                    f32(None, PACKED_COLUMNS),
                    _packed_type(name, rows, PACKED_COLUMNS),
                    None,
                    None,
                ),
                attrs=attrs,
                samples=samples,
            )
