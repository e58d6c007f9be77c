"""llm.paged_attention: verifier, lowerings against the reference, and what may not change a bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmir.dialect_ext.kv_formats import kv_type, to_fp8, to_int8
from llmir.dialect_ext.paged_attention import PagedAttention
from llmir.dialect_ext.types import TensorType
from llmir.errors import VerifyError
from llmir.targets import resolve

from .lowered import compile_text, from_bf16, load, lowering, module, put, run_with_tool, to_bf16
from .ragged import Array, Cache, Heads, Ragged

OP = PagedAttention()
VARIANTS = ("vectors", "loops")
SCALE = 0.125
MIXED = [(0, 0, 40), (1, 16, 17), (2, 12, 33), (3, 199, 200), (4, 0, 1)]
LENGTHS = (40, 17, 33, 200, 1)


def types(heads: Heads, dtype: str = "f32") -> list[TensorType]:
    ints = [(None, None), (None,), (None,), (None,), (None,)]
    return [
        TensorType((None, heads.q, heads.dim), "f32"),
        kv_type(dtype, heads.kv, heads.page_size, heads.dim),
        *(TensorType(shape, "i32") for shape in ints),
    ]


class Compiled:
    """The op compiled for the CPU; call it with a batch."""

    def __init__(
        self, path: Path, heads: Heads, variant: str, *, dtype: str = "f32", window: int = 0
    ) -> None:
        self.attrs = {"scale": SCALE, "window": window}
        self.dtype = dtype
        text = module(OP, types(heads, dtype), self.attrs, variant)
        self.path = compile_text(text, "cpu", path / f"{variant}.vmfb")
        self.main = load(self.path)

    def __call__(self, batch: Ragged) -> Array:
        arrays = [put(a, d) for a, d in self.inputs(batch)]
        return np.array(self.main(*arrays).to_host())

    def inputs(self, batch: Ragged) -> list[tuple[Array, str]]:
        return inputs(batch, self.dtype)

    def reference(self, batch: Ragged) -> Array:
        return OP.reference(*stored(batch, self.dtype), **self.attrs)


def stored(batch: Ragged, dtype: str) -> list[Array]:
    """The operands, kv as its format stores it; bf16 as float32, as a reference takes it."""
    q, kv, *rest = batch.operands
    return [q, STORED[dtype](kv), *rest]


STORED: dict[str, Callable[[Array], Array]] = {
    "f32": lambda kv: kv,
    "f16": lambda kv: kv.astype(np.float16),
    "bf16": lambda kv: from_bf16(to_bf16(kv)),
    "int8": to_int8,
    "fp8": to_fp8,
}


def inputs(batch: Ragged, dtype: str) -> list[tuple[Array, str]]:
    """(values, dtype) of the operands, as `put` takes them."""
    element = "i8" if dtype in ("int8", "fp8") else dtype
    return list(zip(stored(batch, dtype), ["f32", element, *["i32"] * 5], strict=True))


@pytest.fixture(params=VARIANTS, scope="module")
def default(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    return Compiled(tmp_path_factory.mktemp("attention"), Heads(), request.param)


def test_reference_is_softmax_attention() -> None:
    heads = Heads(q=2, kv=1, dim=8, page_size=8)
    cache = Cache((11,), heads)
    batch = cache.batch([(0, 0, 11)])
    k, v = (
        np.stack([cache.kv[cache.pages[0][j // 8], x, 0, j % 8] for j in range(11)]) for x in (0, 1)
    )
    y = OP.reference(*batch.operands, scale=SCALE, window=4)
    weights = np.exp(SCALE * k[7:11] @ batch.q[10, 1])
    np.testing.assert_allclose(y[10, 1], weights @ v[7:11] / weights.sum(), rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: TensorType((None, 9, 64), "f16")}, "operand 'q' must be f32, got .*xf16>"),
        ({0: TensorType((None, None, 64), "f32")}, "Hq and D of q must be static"),
        ({0: TensorType((None, 8, 64), "f32")}, "Hq = 8 of q must be a multiple of H = 3 of kv"),
        ({0: TensorType((None, 9, 32), "f32")}, "rows of 32, as D is 32; got .*x64xf32>"),
        ({1: TensorType((None, 2, 3, 64), "f32")}, r"'kv' must be \[N, 2, H, ps, _D\]"),
        ({1: TensorType((None, 1, 3, 16, 64), "f32")}, r"'kv' must be \[N, 2, H, ps, _D\]"),
        ({1: TensorType((None, 2, 3, 16, 64), "i32")}, "'kv' must be f32 or f16 or bf16 or i8"),
        ({1: TensorType((None, 2, 3, 16, 66), "i8")}, r"rows of 64 \+ 4 \(int8\) or 64 \(fp8\)"),
        ({1: TensorType((None, 2, 3, 12, 64), "f32")}, "page size must be 8, 16, 32; got 12"),
        ({1: TensorType((None, 2, 3, None, 64), "f32")}, "H, ps and D of kv must be static"),
        ({3: TensorType((None,), "i64")}, "'token_seq' must be i32"),
        ({4: TensorType((None, None), "i32")}, r"'positions' must be \[T\]"),
    ],
)
def test_verifier_names_the_operand(change: dict[int, TensorType], message: str) -> None:
    operands = [change.get(i, t) for i, t in enumerate(types(Heads()))]
    with pytest.raises(VerifyError, match=r"^llm\.paged_attention: .*" + message):
        OP.verify(operands, {"scale": SCALE, "window": 0})


@pytest.mark.parametrize(
    ("attrs", "message"),
    [
        ({"scale": SCALE}, "attribute 'window' .* missing"),
        ({"scale": SCALE, "window": -1}, "window must be >= 0, got -1"),
        ({"scale": float("nan"), "window": 0}, "scale must be finite"),
        ({"scale": 1, "window": 0}, "attribute 'scale' must be float"),
    ],
)
def test_verifier_names_the_attribute(attrs: dict[str, Any], message: str) -> None:
    with pytest.raises(VerifyError, match=message):
        OP.verify(types(Heads()), attrs)


def test_vectors_are_for_cpus_only() -> None:
    call = OP.verify(types(Heads()), {"scale": SCALE, "window": 0})
    for name in ("vulkan", "metal", "cuda:sm_80", "rocm:gfx942"):
        assert lowering(OP, "vectors").supports(call, resolve(name))
        assert lowering(OP, "loops").supports(call, resolve(name)) is None
    assert lowering(OP, "vectors").supports(call, resolve("cpu:aarch64")) is None


def test_f16_pages_are_refused_on_vulkan() -> None:
    call = OP.verify(types(Heads(), "f16"), {"scale": SCALE, "window": 0})
    assert "use f32 or bf16" in (lowering(OP, "loops").supports(call, resolve("vulkan")) or "")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("heads", "dtype", "window"),
    [
        (Heads(), "f32", 0),
        (Heads(), "f16", 0),
        (Heads(), "bf16", 0),
        (Heads(), "f32", 1),
        (Heads(), "bf16", 37),
        (Heads(), "int8", 37),
        (Heads(), "fp8", 37),
        (Heads(page_size=32), "int8", 0),
        (Heads(q=10, kv=2, dim=24, page_size=8), "int8", 3),
        (Heads(q=2, kv=1, dim=6, page_size=8), "fp8", 0),
        (Heads(page_size=8), "f32", 20),
        (Heads(page_size=32), "f32", 20),
        (Heads(page_size=32), "f16", 0),
        (Heads(q=8, kv=1, dim=128), "f32", 0),
        (Heads(q=4, kv=4, dim=80), "f32", 0),
        (Heads(q=10, kv=2, dim=24, page_size=8), "f32", 3),
        (Heads(q=14, kv=2, dim=16, page_size=8), "bf16", 0),
        (Heads(q=2, kv=1, dim=6, page_size=8), "f32", 0),
    ],
    ids=str,
)
def test_lowering_matches_the_reference(
    variant: str, heads: Heads, dtype: str, window: int, tmp_path: Path
) -> None:
    compiled = Compiled(tmp_path, heads, variant, dtype=dtype, window=window)
    batch = Cache(LENGTHS, heads).batch(MIXED, window=window)
    y = compiled(batch)
    assert np.isfinite(y).all()  # nothing of the NaN in free slots and pages leaked
    np.testing.assert_allclose(y, compiled.reference(batch), atol=2e-6, rtol=2e-6)


def test_a_row_is_the_same_in_every_batch(default: Compiled) -> None:
    cache = Cache(LENGTHS, Heads())
    alone: dict[tuple[int, int], Array] = {}
    for sequence, length in enumerate(LENGTHS):
        batch = cache.batch([(sequence, 0, length)])
        alone.update(zip(batch.rows, default(batch), strict=True))
    for batch in (
        cache.batch(MIXED),
        cache.batch(MIXED[::-1], spare_columns=5),
        cache.batch([(s, n - 1, n) for s, n in enumerate(LENGTHS)], spare_columns=1),
        cache.batch([(3, 150, 200), (0, 39, 40), (3, 20, 150)]),
    ):
        for row, y in zip(batch.rows, default(batch), strict=True):
            assert y.tobytes() == alone[row].tobytes(), row


def test_chunks_of_any_size_give_the_same_rows(default: Compiled) -> None:
    cache = Cache((70,), Heads())
    whole = default(cache.batch([(0, 0, 70)]))
    for cut in (1, 15, 16, 17, 31, 48, 69):
        first = default(cache.batch([(0, 0, cut)], spare_columns=3))
        second = default(cache.batch([(0, cut, 70)]))
        assert np.concatenate([first, second]).tobytes() == whole.tobytes(), cut


def test_one_thread_gives_the_same_rows(default: Compiled) -> None:
    batch = Cache(LENGTHS, Heads()).batch(MIXED)
    one_thread = run_with_tool(default.path, "local-sync", default.inputs(batch))
    assert one_thread.tobytes() == default(batch).tobytes()


@pytest.mark.parametrize("variant", VARIANTS)
def test_freed_pages_change_no_bit(variant: str, tmp_path: Path) -> None:
    compiled = Compiled(tmp_path, Heads(), variant, window=20)
    cache = Cache((100,), Heads())
    kept, freed = cache.batch([(0, 90, 100)]), cache.batch([(0, 90, 100)], window=20)
    assert freed.page_table[0, 3] == 0
    assert compiled(kept).tobytes() == compiled(freed).tobytes()


def test_large_scores_do_not_overflow(default: Compiled) -> None:
    cache = Cache((50,), Heads())
    batch = cache.batch([(0, 0, 50)])
    batch.q[:] *= 1e4
    np.testing.assert_allclose(default(batch), default.reference(batch), atol=1e-5)


@pytest.mark.targets
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "int8", "fp8"])
@pytest.mark.parametrize("target", ["cuda:sm_80", "rocm:gfx942", "rocm:gfx1100", "metal"])
def test_loops_compile_for_gpus(target: str, dtype: str, tmp_path: Path) -> None:
    text = module(OP, types(Heads(), dtype), {"scale": SCALE, "window": 7}, "loops")
    assert compile_text(text, target, tmp_path / "m.vmfb").stat().st_size > 0


@pytest.mark.targets
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("arch", ["aarch64", "x86-64-v3"])
def test_compiles_for_other_cpus(arch: str, variant: str, tmp_path: Path) -> None:
    text = module(OP, types(Heads(), "bf16"), {"scale": SCALE, "window": 7}, variant)
    assert compile_text(text, f"cpu:{arch}", tmp_path / "m.vmfb").stat().st_size > 0


@pytest.mark.targets
@pytest.mark.parametrize("dtype", ["f32", "bf16", "int8", "fp8"])
def test_vulkan_matches_the_reference(dtype: str, tmp_path: Path) -> None:
    attrs = {"scale": SCALE, "window": 20}
    operand_types = types(Heads(), dtype)
    path = compile_text(module(OP, operand_types, attrs, "loops"), "vulkan", tmp_path / "m.vmfb")
    batch = Cache(LENGTHS, Heads()).batch(MIXED, window=20)
    y = run_with_tool(path, "vulkan", inputs(batch, dtype))
    expected = OP.reference(*stored(batch, dtype), **attrs)
    np.testing.assert_allclose(y, expected, atol=5e-6)
