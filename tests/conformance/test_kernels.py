"""Every C kernel × every ISA level, against the op's reference, on shapes drawn at random.

A level is run in this process where its CPU has what it needs, under qemu where it is of
64-bit Arm; a level that neither can run is skipped, with the reason, and never passes.

Each case is run again with the forbidden pages before the buffers, other poison in memory that
nobody has written, another order of the workgroups and another number of workers, cut into
other batches, and on the first level: all must give the same bits.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from dialect_ext.ragged import Cache, Heads
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plugins.elf import read_elf
from plugins.kernels import kernels, levels_here

from llmir.cpu_levels import LEVELS, IsaLevel, object_path
from llmir.dialect_ext.c_matmul import CHUNK
from llmir.dialect_ext.gated_mul import GATES
from llmir.dialect_ext.packed_matmul import activations_of
from llmir.dialect_ext.registry import get_op
from llmir.formats import packed

from . import cases
from .cases import AppendShape, Case, MatmulShape
from .emulated import Emulated, missing_qemu
from .lowered_calls import Array, Dispatch, Machine, Runs
from .native import Native

DTYPES = ("f32", "f16", "bf16", "int8", "fp8")
MATMULS = {f"llmir_matmul_{f}_{a}": (f, a) for f in packed.FORMATS for a in activations_of(f)}
# test_matmul calls them first.
ROUNDS = {name.replace("matmul", "round") for name in MATMULS}
ROWS = {f"llmir_rows_{f}": f for f in packed.FORMATS}
ATTENDS = {f"llmir_attend_{d}": d for d in DTYPES}
APPENDS = {f"llmir_append_kv_{d}": d for d in DTYPES}
ROPE_APPENDS = {f"llmir_rope_append_{d}": d for d in DTYPES}
# test_attention calls the first for every split batch, test_best the second, test_top the third.
WITH_OTHERS = ("llmir_combine", "llmir_best", "llmir_top")
# test_team.
TEAM = ("llmir_claim", "llmir_done", "llmir_wait")

LEVEL = pytest.mark.parametrize("level", LEVELS, ids=lambda x: x.name)
# For what takes seconds under qemu: emulated levels in `make test-targets` alone.
LONG = pytest.mark.parametrize(
    "level",
    [
        pytest.param(x, id=x.name, marks=[] if x in levels_here() else pytest.mark.targets)
        for x in LEVELS
    ],
)
# Few examples of small shapes in `make test`, many of large ones in `make test-targets`.
BUDGET = pytest.mark.parametrize(
    "many",
    [pytest.param(False, id="few"), pytest.param(True, id="many", marks=pytest.mark.targets)],
)
Make = Callable[..., Native | Emulated]


def test_every_kernel_is_in_the_suite() -> None:
    known = {*MATMULS, *ROUNDS, *ROWS, *ATTENDS, *APPENDS, *ROPE_APPENDS, *WITH_OTHERS, *TEAM}
    for level in LEVELS:
        assert read_elf(object_path(level)).functions == known, level.name


@pytest.fixture
def make(level: IsaLevel) -> Make:
    """make(…) → a machine of the level; skips where there can be none."""
    return machine_of(level)


def machine_of(level: IsaLevel) -> Make:
    if level in levels_here():
        return partial(Native, kernels(level.name))
    if level.arch == "aarch64" and platform.machine() != "aarch64":
        assert not missing_qemu(), missing_qemu()
        return partial(Emulated, level.name)
    pytest.skip(f"{level.name} was compiled, and not run: this machine cannot")


def is_emulated(level: IsaLevel) -> bool:
    return level not in levels_here()


def first_level() -> Make:
    return partial(Native, kernels(levels_here()[0].name))


def same(a: Sequence[Array], b: Sequence[Array], what: str) -> None:
    for x, y in zip(a, b, strict=True):
        assert x.tobytes() == y.tobytes(), f"other bits: {what}"


def examine(kernel: str, case: Case, make: Make, *, other_levels: bool = True) -> list[Array]:
    """Run a case every way there is; returns its results."""
    machine = make()
    results = case.run(machine, workers=2)
    assert kernel in machine.called or not results[0].size
    case.check(results)
    for workers, poison in ((1, 0x7F), (5, 0x00)):
        other = make(at_end=workers == 5, poison=poison, seed=workers)
        same(results, case.run(other, workers=workers), f"{workers} workers, poison {poison:#x}")
    if other_levels:
        same(results, case.run(first_level()()), f"as on {levels_here()[0].name}")
    return results


def num_examples(level: IsaLevel, many: bool) -> int:
    """Of shapes that are quick to run."""
    return (6 if is_emulated(level) else 20) if many else 3


def drawn(
    strategy: st.SearchStrategy[Any], num_examples: int, check: Callable[[Any], None]
) -> None:
    """check(example), of that many examples."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]

    @settings(
        max_examples=num_examples, deadline=None, derandomize=True, database=None,
        suppress_health_check=slow,
    )  # fmt: skip
    @given(strategy)
    def run(example: Any) -> None:
        check(example)

    run()


# --- matmuls


@st.composite
def matmul_shapes(
    draw: st.DrawFn, format_name: str, most_tokens: int, most_columns: int
) -> MatmulShape:
    step = packed.FORMATS[format_name].section or packed.BLOCK
    gated = draw(st.sampled_from(["", "", *GATES]))
    with_sum = not gated
    return MatmulShape(
        T=draw(st.one_of(st.integers(0, 20), st.integers(0, most_tokens))),
        N=draw(st.integers(1, 5)) * 16 if gated else draw(st.integers(1, 90)),
        K=step * draw(st.integers(1, most_columns // step)),
        norm=draw(st.booleans()),
        bias=with_sum and draw(st.booleans()),
        residual=with_sum and draw(st.booleans()),
        gated=gated,
        seed=draw(st.integers(0, 1000)),
    )


def cut(dispatch: Dispatch, count_n: int, count_m: int) -> Dispatch:
    """A matmul's dispatch on another grid."""
    x, y, _ = dispatch.grid
    scratch = len(dispatch.tensors) - 1
    of_workgroup = dispatch.tensors[scratch].nbytes // max(1, x * y)
    memory = np.zeros(of_workgroup * count_n * count_m, np.int8)
    tensors = (*dispatch.tensors[:scratch], memory)
    return replace(dispatch, tensors=tensors, grid=(count_n, count_m, 1))


def examine_matmul(
    kernel: str, level: IsaLevel, make: Make, many: bool, shape: MatmulShape
) -> None:
    case = cases.matmul(*MATMULS[kernel], shape)
    # Products of bfloat16 round as the level's instruction does (multiply_float.h).
    as_here_only = MATMULS[kernel] == ("bf16", "bf16") and has_bf16(level)
    results = examine(kernel, case, make, other_levels=not as_here_only)
    units = -(-shape.N // 16)
    least = max(1, -(-shape.T // CHUNK))
    for count_n, count_m in ((1, least), (units, least + 1), (max(1, units - 1), least + 2)):

        def run_cut(dispatch: Dispatch, n: int = count_n, m: int = count_m) -> None:
            make()(cut(dispatch, n, m))

        same(results, case.run(run_cut), f"a grid of {count_n} × {count_m}")
    parts = {(0, 1), (shape.T - 1, shape.T), (shape.T // 3, shape.T // 3 + 7)}
    for start, end in parts if shape.T else ():
        some = slice(max(0, start), end)
        operands = list(case.operands)
        for i in (0, 4):
            operands[i] = None if operands[i] is None else operands[i][some]
        alone = replace(case, operands=operands).run(make())
        same([results[0][some]], alone, f"rows {start} to {end} alone")


@BUDGET
@LEVEL
@pytest.mark.parametrize("kernel", sorted(MATMULS))
def test_matmul(kernel: str, level: IsaLevel, many: bool, make: Make) -> None:
    if is_emulated(level):
        largest, count = ((200, 800), 4) if many else ((70, 640), 2)
    else:
        largest, count = ((600, 1200), 12) if many else ((150, 640), 5)
    shapes = matmul_shapes(MATMULS[kernel][0], *largest)
    drawn(shapes, count, partial(examine_matmul, kernel, level, make, many))


@LEVEL
@pytest.mark.parametrize(
    "kernel", ["llmir_matmul_q4_1_int16", "llmir_matmul_q8_0_int8", "llmir_matmul_bf16_bf16"]
)
def test_matmul_of_600_tokens(kernel: str, level: IsaLevel, make: Make) -> None:
    if is_emulated(level):
        pytest.skip("emulated: minutes; test_matmul goes to 200 there")
    shape = MatmulShape(T=600, N=33, K=576, norm=True, bias=True, residual=True)
    examine_matmul(kernel, level, make, False, shape)


@LEVEL
@pytest.mark.parametrize("gated", GATES)
def test_gates_of_any_size(gated: str, level: IsaLevel, make: Make) -> None:
    case = cases.gate(gated)
    examine("llmir_matmul_f32_f32", case, make)


SPECIAL = {"none": None, "a NaN": [np.nan], "inf": [np.inf], "-inf": [-np.inf]}


def some(shapes: Sequence[Any], level: IsaLevel, many: bool) -> list[tuple[int, Any]]:
    """The shapes with their numbers; every other one where all take too long."""
    numbered = list(enumerate(shapes))
    return numbered[::2] if is_emulated(level) and not many else numbered


@BUDGET
@LEVEL
@pytest.mark.parametrize("special", SPECIAL)
@pytest.mark.parametrize("kernel", ["llmir_matmul_q4_1_int16", "llmir_matmul_q8_0_int8"])
def test_best(kernel: str, special: str, level: IsaLevel, many: bool, make: Make) -> None:
    """llm.packed_argmax: of the very logits that llm.packed_matmul gives, and no other token."""
    shapes = ((3, 50), (1, 1), (21, 200), (0, 16), (70, 33))
    for seed, (tokens, columns) in some(shapes, level, many):
        shape = MatmulShape(T=tokens, N=columns, K=64 * (seed + 1), bias=True, seed=seed)
        bias = None if special == "none" else np.float32(SPECIAL[special])
        logits, case = cases.best(*MATMULS[kernel], shape, bias)
        (y,) = logits.run(make())
        (ids,) = examine("llmir_best", case, make)
        np.testing.assert_array_equal(ids, get_op("argmax").reference(y))
        if special in ("a NaN", "inf"):
            assert (ids == -1).all()
    _, case = cases.best(*MATMULS[kernel], shape, np.full(columns, -np.inf, np.float32))
    assert (case.run(make())[0] == -1).all()


@BUDGET
@LEVEL
@pytest.mark.parametrize("special", SPECIAL)
@pytest.mark.parametrize("kernel", ["llmir_matmul_q4_1_int16", "llmir_matmul_q8_0_int8"])
def test_top(kernel: str, special: str, level: IsaLevel, many: bool, make: Make) -> None:
    """llm.packed_topk: of the very logits that llm.packed_matmul gives, and no other tokens."""
    shapes = ((3, 50, 50), (1, 1, 1), (2, 1000, 64), (0, 16, 3), (70, 33, 5), (21, 200, 64))
    for seed, (tokens, columns, k) in some(shapes, level, many):
        shape = MatmulShape(T=tokens, N=columns, K=64 * (seed + 1), bias=True, seed=seed)
        bias = None if special == "none" else np.float32(SPECIAL[special])
        logits, case = cases.best(*MATMULS[kernel], shape, bias, k)
        check_top(logits.run(make())[0], examine("llmir_top", case, make), k)
        if special in ("a NaN", "inf"):
            assert (case.run(make())[1] == -1).all()
    _, case = cases.best(*MATMULS[kernel], shape, np.full(columns, -np.inf, np.float32), k)
    assert (case.run(make())[1] == -1).all()


@LEVEL
def test_top_of_equal_logits(level: IsaLevel, make: Make) -> None:
    """The lower ids come first, and a number that is not there does not take a place."""
    shape = MatmulShape(T=3, N=100, K=64, bias=True)
    for lowest, finite in ((0, 100), (-np.inf, 7)):
        logits, case = cases.best("q8_0", "int8", shape, None, 64)
        for one in (logits, case):
            x, weight, _, bias = one.operands[:4]
            x[:] = weight[:] = 0
            bias[:] = lowest
            bias[50 : 50 + finite] = bias[: max(0, finite - 50)] = 2
        check_top(logits.run(make())[0], examine("llmir_top", case, make), 64)


def check_top(logits: Array, found: Sequence[Array], k: int) -> None:
    values, ids, weights = get_op("topk").reference(logits, k=k)
    np.testing.assert_array_equal(found[1], ids)
    np.testing.assert_array_equal(found[0], values)
    np.testing.assert_allclose(found[2], weights, rtol=1e-5)


@BUDGET
@LEVEL
@pytest.mark.parametrize("kernel", sorted(ROWS))
def test_rows(kernel: str, level: IsaLevel, many: bool, make: Make) -> None:
    step = packed.FORMATS[ROWS[kernel]].section or packed.BLOCK
    shapes = st.tuples(
        st.integers(0, 70), st.integers(1, 70),
        st.integers(1, 640 // step).map(lambda n: step * n), st.integers(0, 1000),
    )  # fmt: skip

    def check(shape: tuple[int, int, int, int]) -> None:
        examine(kernel, cases.rows(ROWS[kernel], *shape), make)

    drawn(shapes, num_examples(level, many), check)


# --- pages


def heads(most_dim: int = 128, page_sizes: Sequence[int] = (16, 32)) -> st.SearchStrategy[Heads]:
    return st.builds(
        lambda kv, group, dim, page_size: Heads(q=kv * group, kv=kv, dim=dim, page_size=page_size),
        st.integers(1, 3),
        st.integers(1, 7),
        st.integers(1, most_dim // 16).map(lambda n: 16 * n),
        st.sampled_from(page_sizes),
    )


@st.composite
def append_shapes(draw: st.DrawFn) -> AppendShape:
    tokens = draw(st.integers(0, 60))
    return AppendShape(
        heads=draw(heads()),
        pages=draw(st.integers(5, 7)),
        T=tokens,
        padding=draw(st.integers(0, tokens)),
        q_norm=draw(st.booleans()),
        k_norm=draw(st.booleans()),
        seed=draw(st.integers(0, 1000)),
    )


@BUDGET
@LEVEL
@pytest.mark.parametrize("kernel", sorted({**APPENDS, **ROPE_APPENDS}))
def test_append(kernel: str, level: IsaLevel, many: bool, make: Make) -> None:
    def check(shape: AppendShape) -> None:
        if kernel in APPENDS:
            case = cases.append(shape, APPENDS[kernel])
        else:
            case = cases.rope_append(shape, ROPE_APPENDS[kernel])
        examine(kernel, replace(case, lowered=WithoutPage0(case.lowered)), make)

    drawn(append_shapes(), num_examples(level, many), check)


@dataclass(frozen=True)
class WithoutPage0:
    """A lowered call whose page 0 is cleared afterwards: padding writes there in any order."""

    lowered: Runs

    def __call__(
        self, machine: Machine, operands: Sequence[Array | None], *, workers: int = 2
    ) -> list[Array]:
        results = self.lowered(machine, operands, workers=workers)
        results[-1][0] = 0
        return results


@st.composite
def batches(draw: st.DrawFn, most: int) -> tuple[Any, ...]:
    """Heads, lengths of sequences, the part of each that the batch has, window, spare columns,
    seed, soft cap and sinks."""
    shape = draw(heads())
    lengths = draw(st.lists(st.integers(1, most), min_size=1, max_size=5))
    parts = []
    for sequence in draw(st.permutations(range(len(lengths)))):
        length = lengths[sequence]
        count = draw(st.one_of(st.just(1), st.integers(1, min(length, 80))))
        end = draw(st.integers(count, length))
        parts.append((sequence, end - count, end))
    window = draw(st.sampled_from([0, 0, 1, 33, 300]))
    changes = {"softcap": draw(st.sampled_from([0.0, 0.0, 0.5, 30.0]))}
    changes["with_sinks"] = draw(st.booleans())
    seed = draw(st.integers(0, 1000))
    return shape, lengths, parts, window, draw(st.integers(0, 3)), seed, changes


def examine_attention(kernel: str, level: IsaLevel, make: Make, example: tuple[Any, ...]) -> None:
    shape, lengths, parts, window, spare, seed, changes = example
    dtype = ATTENDS[kernel]
    cache = Cache(lengths, shape, seed=seed)
    batch = cache.batch(parts, spare_columns=spare, window=window)
    case = cases.attention(batch, shape, dtype, window=window, **changes)
    # bfloat16's dot product rounds as the level's instruction does (simd.h).
    results = examine(kernel, case, make, other_levels=dtype != "bf16" or not has_bf16(level))
    at = 0
    for sequence, start, end in parts:
        # Alone, and its last token alone, on a page table that is no wider than it has to be.
        for first in {start, end - 1}:
            alone = cache.batch([(sequence, first, end)], window=window)
            found = cases.attention(alone, shape, dtype, window=window, **changes).run(make())
            rows = slice(at + first - start, at + end - start)
            same([results[0][rows]], found, f"positions {first} to {end} alone")
        at += end - start


def has_bf16(level: IsaLevel) -> bool:
    return "avx512bf16" in level.features


@BUDGET
@LEVEL
@pytest.mark.parametrize("kernel", sorted(ATTENDS))
def test_attention(kernel: str, level: IsaLevel, many: bool, make: Make) -> None:
    if is_emulated(level):
        most, count = (600, 4) if many else (150, 2)
    else:
        most, count = (1500, 12) if many else (600, 6)
    drawn(batches(most), count, partial(examine_attention, kernel, level, make))


@LONG
@pytest.mark.parametrize("kernel", sorted(ATTENDS))
def test_attention_of_4000_tokens(kernel: str, level: IsaLevel, make: Make) -> None:
    """One token at the end, and a whole chunk, beside sequences of one token."""
    shape = Heads(q=4, kv=2, dim=64)
    parts = [(1, 0, 1), (0, 3999, 4000), (2, 0, 1)]
    if not is_emulated(level):
        parts[1] = (0, 3960, 4000)
    lengths, changes = [4000, 1, 1], {"softcap": 2.0, "with_sinks": True}
    examine_attention(kernel, level, make, (shape, lengths, parts, 0, 1, 0, {}))
    last = [(0, 3999, 4000)]
    examine_attention(kernel, level, make, (shape, lengths, last, 700, 0, 0, changes))
