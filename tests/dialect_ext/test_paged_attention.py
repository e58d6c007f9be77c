"""llm.paged_attention: verifier, lowerings against the reference, and what may not change a bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import iree.turbine.aot as aot
import numpy as np
import pytest
import torch

from llmir.dialect_ext.kv_formats import kv_type, to_fp8, to_int8
from llmir.dialect_ext.paged_attention import PagedAttention
from llmir.dialect_ext.torch_library import register_all
from llmir.dialect_ext.types import TensorType
from llmir.errors import VerifyError
from llmir.passes.ir import call_of, parse_module, walk
from llmir.passes.manager import PassManager
from llmir.passes.raise_torch_llm import RaiseTorchLlm
from llmir.targets import resolve

from .lowered import (
    Together,
    compile_text,
    compile_together,
    from_bf16,
    lowering,
    module,
    put,
    run_with_tool,
    to_bf16,
)
from .ragged import Array, Cache, Heads, Ragged

OP = PagedAttention()
VARIANTS = ("vectors", "loops")
SCALE = 0.125
MIXED = [(0, 0, 40), (1, 16, 17), (2, 12, 33), (3, 199, 200), (4, 0, 1)]
LENGTHS = (40, 17, 33, 200, 1)


def types(heads: Heads, dtype: str = "f32", *, sinks: bool = False) -> list[TensorType | None]:
    ints = [(None, None), (None,), (None,), (None,), (None,)]
    return [
        TensorType((None, heads.q, heads.dim), "f32"),
        kv_type(dtype, heads.kv, heads.page_size, heads.dim),
        *(TensorType(shape, "i32") for shape in ints),
        TensorType((heads.q,), "f32") if sinks else None,
    ]


CASES = [
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
]
WITH_CAPS: list[tuple[Heads, str, int, float, list[float] | None]] = [
    (Heads(), "f32", 0, 2.5, None),
    (Heads(), "f32", 20, 50.0, [-3.0, 0.0, 3.0, 100.0, -100.0, 1.0, 2.0, 5.0, -np.inf]),
    (Heads(), "int8", 20, 0.0, [1.0] * 9),
    (Heads(q=10, kv=2, dim=24, page_size=8), "bf16", 3, 1.0, [0.5] * 10),
]


class Compiled:
    """The op compiled for the CPU, with all others of this file; call it with a batch."""

    def __init__(
        self,
        heads: Heads,
        variant: str,
        *,
        dtype: str = "f32",
        window: int = 0,
        softcap: float = 0.0,
        sinks: Sequence[float] | None = None,
    ) -> None:
        self.attrs = {"scale": SCALE, "window": window, "softcap": softcap}
        self.dtype = dtype
        self.sinks = None if sinks is None else np.array(sinks, np.float32)
        self.text = module(OP, types(heads, dtype, sinks=sinks is not None), self.attrs, variant)
        self.together: Together | None = None

    def __call__(self, batch: Ragged) -> Array:
        assert self.together is not None
        arrays = [put(a, d) for a, d in self.inputs(batch)]
        return np.array(self.together.mains[self.text](*arrays).to_host())

    def on_one_thread(self, batch: Ragged) -> Array:
        assert self.together is not None
        path, name = self.together.path, self.together.names[self.text]
        return run_with_tool(path, "local-sync", self.inputs(batch), name)

    def inputs(self, batch: Ragged) -> list[tuple[Array, str]]:
        sinks = [] if self.sinks is None else [(self.sinks, "f32")]
        return inputs(batch, self.dtype) + sinks

    def reference(self, batch: Ragged) -> Array:
        return OP.reference(*stored(batch, self.dtype), self.sinks, **self.attrs)


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


Make = Callable[..., Compiled]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """compiled(heads, variant, …) → what the tests below ask for, of one module."""
    wanted = [Compiled(Heads(), v, window=20) for v in VARIANTS]
    for heads, dtype, window in CASES:
        wanted += [Compiled(heads, v, dtype=dtype, window=window) for v in VARIANTS]
    for heads, dtype, window, softcap, sinks in WITH_CAPS:
        options = {"dtype": dtype, "window": window, "softcap": softcap, "sinks": sinks}
        wanted += [Compiled(heads, v, **options) for v in VARIANTS]
    path = tmp_path_factory.mktemp("attention") / "m.vmfb"
    together = compile_together({case.text: case.text for case in wanted}, path)

    def made(heads: Heads, variant: str, **options: Any) -> Compiled:
        case = Compiled(heads, variant, **options)
        case.together = together
        return case

    return made


@pytest.fixture(params=VARIANTS, scope="module")
def default(request: pytest.FixtureRequest, compiled: Make) -> Compiled:
    return compiled(Heads(), request.param)


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
        ({7: TensorType((8,), "f32")}, "dim Hq of .* is 9 in operand 'q'"),
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
        ({"scale": SCALE, "window": 0, "softcap": -1.0}, "softcap must be >= 0 and finite"),
        ({"scale": SCALE, "window": 0, "softcap": float("inf")}, "softcap must be >= 0 and"),
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
    CASES,
    ids=str,
)
def test_lowering_matches_the_reference(
    variant: str, heads: Heads, dtype: str, window: int, compiled: Make
) -> None:
    attend = compiled(heads, variant, dtype=dtype, window=window)
    batch = Cache(LENGTHS, heads).batch(MIXED, window=window)
    y = attend(batch)
    assert np.isfinite(y).all()  # nothing of the NaN in free slots and pages leaked
    np.testing.assert_allclose(y, attend.reference(batch), atol=2e-6, rtol=2e-6)


def test_reference_caps_scores_and_counts_sinks() -> None:
    heads = Heads(q=2, kv=1, dim=8, page_size=8)
    cache = Cache((11,), heads)
    batch = cache.batch([(0, 10, 11)])
    pages = cache.kv[cache.pages[0]]
    k, v = (pages[:, x, 0].reshape(-1, 8)[:11] for x in (0, 1))
    sinks = np.array([-1.0, 2.0], np.float32)
    y = OP.reference(*batch.operands, sinks, scale=4.0, window=0, softcap=3.0)
    weights = np.exp(3 * np.tanh(4 * k @ batch.q[0, 1] / 3))
    np.testing.assert_allclose(y[0, 1], weights @ v / (weights.sum() + np.exp(2.0)), rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("heads", "dtype", "window", "softcap", "sinks"),
    WITH_CAPS,
    ids=str,
)
def test_caps_and_sinks(
    variant: str, heads: Heads, dtype: str, window: int, softcap: float, sinks: Any, compiled: Make
) -> None:
    options = {"dtype": dtype, "window": window, "softcap": softcap, "sinks": sinks}
    attend = compiled(heads, variant, **options)
    cache = Cache(LENGTHS, heads)
    batch = cache.batch(MIXED, window=window)
    y = attend(batch)
    np.testing.assert_allclose(y, attend.reference(batch), atol=4e-6, rtol=4e-6)
    assert not np.allclose(y, OP.reference(*stored(batch, dtype), scale=SCALE, window=window))
    alone = attend(cache.batch([MIXED[3]], window=window))
    assert alone[0].tobytes() == y[[r == (3, 199) for r in batch.rows].index(True)].tobytes()


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
    assert default.on_one_thread(batch).tobytes() == default(batch).tobytes()


@pytest.mark.parametrize("variant", VARIANTS)
def test_freed_pages_change_no_bit(variant: str, compiled: Make) -> None:
    attend = compiled(Heads(), variant, window=20)
    cache = Cache((100,), Heads())
    kept, freed = cache.batch([(0, 90, 100)]), cache.batch([(0, 90, 100)], window=20)
    assert freed.page_table[0, 3] == 0
    assert attend(kept).tobytes() == attend(freed).tobytes()


def test_large_scores_do_not_overflow(default: Compiled) -> None:
    cache = Cache((50,), Heads())
    batch = cache.batch([(0, 0, 50)])
    batch.q[:] *= 1e4
    np.testing.assert_allclose(default(batch), default.reference(batch), atol=1e-5)


@pytest.mark.targets
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "int8", "fp8"])
@pytest.mark.parametrize("target", ["cuda:sm_80", "rocm:gfx942", "rocm:gfx1100", "metal"])
def test_loops_compile_for_gpus(target: str, dtype: str, tmp_path: Path) -> None:
    attrs = {"scale": SCALE, "window": 7, "softcap": 30.0}
    text = module(OP, types(Heads(), dtype, sinks=True), attrs, "loops")
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
    attrs = {"scale": SCALE, "window": 20, "softcap": 2.0}
    operand_types = types(Heads(), dtype, sinks=True)
    sinks = np.arange(-4, 5, dtype=np.float32)
    path = compile_text(module(OP, operand_types, attrs, "loops"), "vulkan", tmp_path / "m.vmfb")
    batch = Cache(LENGTHS, Heads()).batch(MIXED, window=20)
    y = run_with_tool(path, "vulkan", [*inputs(batch, dtype), (sinks, "f32")])
    expected = OP.reference(*stored(batch, dtype), sinks, **attrs)
    np.testing.assert_allclose(y, expected, atol=5e-6)


class Attends(torch.nn.Module):
    """The op, `options` by name."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, *operands: torch.Tensor) -> torch.Tensor:
        *rest, sinks = operands
        named = {**self.options, "sinks": sinks} if self.options else {}
        return torch.ops.llm.paged_attention(*rest, SCALE, 20, **named)


@pytest.mark.parametrize("options", [{}, {"softcap": 2.0}], ids=["left out", "by name"])
def test_torch_callers_name_caps_and_sinks(options: dict[str, float]) -> None:
    register_all()
    heads = Heads(q=2, kv=1, dim=8, page_size=8)
    batch = Cache((11,), heads).batch([(0, 3, 11)])
    sinks = np.array([1.0, 2.0], np.float32)
    attends = Attends(**options)
    operands = [torch.from_numpy(a) for a in (*batch.operands, sinks)]
    y = attends(*operands).numpy()
    given = [*batch.operands, sinks if options else None]
    np.testing.assert_array_equal(y, OP.reference(*given, scale=SCALE, window=20, **options))
    # As the compiler traces it, down to llm IR.
    program = torch.export.export(attends, tuple(operands), strict=False)
    module = parse_module(str(aot.export(program).mlir_module))
    PassManager().run(module, [RaiseTorchLlm()])
    (raised,) = (op for op in walk(module.operation) if op.name == "llm.paged_attention")
    call = call_of(raised)
    assert call.attrs == {"scale": SCALE, "window": 20, "softcap": 0.0, **options}
    assert (call.operand("sinks") is not None) == bool(options)
