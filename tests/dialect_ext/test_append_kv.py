"""llm.append_kv: verifier, lowerings against the reference, and that no copy of kv is made."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmir.compiler.iree_compile import to_stream
from llmir.dialect_ext.append_kv import AppendKv
from llmir.dialect_ext.kv_formats import kv_type, read, to_fp8, to_int8
from llmir.dialect_ext.paged_attention import PagedAttention
from llmir.dialect_ext.types import TensorType
from llmir.errors import VerifyError
from llmir.targets import resolve

from .lowered import (
    Array,
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

OP = AppendKv()
VARIANTS = ("rows", "scatter")
PAGES, HEADS, DIM = 5, 3, 24
READ_ALL = "affine_map<(n, x, h, o, d) -> (n, x, h, o, d)>"


def types(page_size: int = 16, dtype: str = "f32", tokens: int | None = None) -> list[TensorType]:
    row = TensorType((tokens, HEADS, DIM), "f32")
    kv = TensorType((None, 2, HEADS, page_size, DIM), dtype)
    return [kv, row, row, TensorType((tokens,), "i32")]


def append_and_read(page_size: int, dtype: str, variant: str) -> str:
    """MLIR whose `main` appends, and returns the pages widened to f32 by a later reader."""
    call = OP.verify(types(page_size, dtype), {})
    kv, row, _, slots = types(page_size, dtype)
    y = TensorType(kv.shape, "f32")
    widen = "" if dtype == "f32" else f"%w = arith.extf %a : {dtype} to f32"
    return f"""
{lowering(OP, variant).emit(call, "op")}
func.func @main(%kv: {kv}, %k: {row}, %v: {row}, %slots: {slots}) -> {y} {{
  %new = func.call @op(%kv, %k, %v, %slots) : ({kv}, {row}, {row}, {slots}) -> {kv}
  %c0 = arith.constant 0 : index
  %n = tensor.dim %new, %c0 : {kv}
  %empty = tensor.empty(%n) : {y}
  %y = linalg.generic {{
      indexing_maps = [{READ_ALL}, {READ_ALL}],
      iterator_types = ["parallel", "parallel", "parallel", "parallel", "parallel"]
  }} ins(%new : {kv}) outs(%empty : {y}) {{
  ^bb0(%a: {dtype}, %o: f32):
    {widen}
    linalg.yield {"%w" if widen else "%a"} : f32
  }} -> {y}
  return %y : {y}
}}
"""


def operands(slots: list[int], page_size: int, seed: int = 0) -> list[Array]:
    rng = np.random.default_rng(seed)
    shapes = [(PAGES, 2, HEADS, page_size, DIM), *[(len(slots), HEADS, DIM)] * 2]
    kv, k, v = (rng.standard_normal(s).astype(np.float32) for s in shapes)
    return [kv, k, v, np.array(slots, np.int32)]


def expected_pages(arrays: list[Array], dtype: str) -> Array:
    kv, k, v, slots = arrays
    if dtype == "bf16":
        kv, k, v = (from_bf16(to_bf16(x)) for x in (kv, k, v))
    elif dtype == "f16":
        kv = kv.astype(np.float16)
    return OP.reference(kv, k, v, slots).astype(np.float32)


def test_reference_writes_rows_where_slots_say() -> None:
    kv, k, v, slots = operands([17, 40], 16)
    y = OP.reference(kv, k, v, slots)
    np.testing.assert_array_equal(y[1, 0, :, 1], k[0])
    np.testing.assert_array_equal(y[2, 1, :, 8], v[1])
    y[1, :, :, 1], y[2, :, :, 8] = kv[1, :, :, 1], kv[2, :, :, 8]
    np.testing.assert_array_equal(y, kv)


@pytest.mark.parametrize(
    ("index", "operand", "message"),
    [
        (0, TensorType((None, 2, HEADS, None, DIM), "f32"), "H, ps and D of kv must be static"),
        (0, TensorType((None, 3, HEADS, 16, DIM), "f32"), r"'kv' must be \[N, 2, H, ps, _D\]"),
        (0, TensorType((None, 2, HEADS, 16, DIM), "i32"), "'kv' must be f32 or f16 or bf16 or i8"),
        (0, TensorType((None, 2, HEADS, 16, DIM + 4), "f32"), "rows of 24, as D is 24; got"),
        (0, TensorType((None, 2, HEADS, 16, DIM + 2), "i8"), r"rows of 24 \+ 4 \(int8\) or 24"),
        (1, TensorType((None, 2, DIM), "f32"), "dim H of .* is 3 in operand 'kv'"),
        (2, TensorType((None, HEADS, DIM), "f16"), "'v' must be f32"),
        (3, TensorType((None,), "i64"), "'slots' must be i32"),
    ],
)
def test_verifier_names_the_operand(index: int, operand: TensorType, message: str) -> None:
    wrong = types()
    wrong[index] = operand
    with pytest.raises(VerifyError, match=r"^llm\.append_kv: .*" + message):
        OP.verify(wrong, {})


DTYPES, PAGE_SIZES = ("f32", "f16", "bf16"), (8, 16, 32)
BYTES = [("int8", "rows"), ("int8", "scatter"), ("fp8", "rows"), ("fp8", "scatter")]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Together:
    """append_and_read of (page size, dtype, variant), and the op on bytes of (dtype, variant)."""
    texts: dict[Any, str] = {
        case: append_and_read(*case) for case in itertools.product(PAGE_SIZES, DTYPES, VARIANTS)
    }
    texts |= {(d, variant): module(OP, byte_arrays(d)[0], {}, variant) for d, variant in BYTES}
    return compile_together(texts, tmp_path_factory.mktemp("append") / "m.vmfb")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_lowering_matches_the_reference(
    variant: str, dtype: str, page_size: int, together: Together
) -> None:
    main = together.mains[page_size, dtype, variant]
    last = PAGES * page_size - 1
    for slots in ([page_size], [last, page_size, page_size + 7, 2 * page_size - 1]):
        arrays = operands(slots, page_size)
        dtypes = [dtype, "f32", "f32", "i32"]
        y = main(*map(put, arrays, dtypes)).to_host()
        np.testing.assert_array_equal(y, expected_pages(arrays, dtype))


def byte_arrays(dtype: str) -> tuple[list[TensorType], list[Array]]:
    """Types and operands of pages of bytes; rows of all sizes, one of zeros, two not finite."""
    kv, *rest = types()
    kv = kv_type(dtype, HEADS, 16, DIM)
    rng = np.random.default_rng(0)
    old = rng.standard_normal((PAGES, 2, HEADS, 16, DIM))
    old = (to_int8 if dtype == "int8" else to_fp8)(old)
    slots = np.array([16, 79, 32, 33, 17], np.int32)
    k, v = (rng.standard_normal((len(slots), HEADS, DIM)).astype(np.float32) for _ in "kv")
    k *= np.ldexp(1, rng.integers(-12, 12, (len(slots), HEADS, 1))).astype(np.float32)
    k[1, 1], k[0, 0, 0], v[2, 2, 3] = 0, np.inf, np.nan
    return [kv, *rest], [old, k, v, slots]


@pytest.mark.parametrize(("dtype", "variant"), BYTES)
def test_bytes_are_the_references(dtype: str, variant: str, together: Together) -> None:
    _, arrays = byte_arrays(dtype)
    y = together.mains[dtype, variant](*map(put, arrays, ["i8", "f32", "f32", "i32"])).to_host()
    np.testing.assert_array_equal(y, OP.reference(*arrays))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_callers_pages_are_written_and_padding_may_share_a_slot(
    variant: str, together: Together
) -> None:
    main = together.mains[16, "f32", variant]
    kv, k, v, slots = operands([35, 0, 0, 0, 16], 16)
    pages = put(kv, "f32")
    main(pages, put(k, "f32"), put(v, "f32"), put(slots, "i32"))
    y, expected = np.array(pages.to_host()), OP.reference(kv, k, v, slots)
    np.testing.assert_array_equal(y[1:], expected[1:])
    np.testing.assert_array_equal(y[0, :, :, 1:], kv[0, :, :, 1:])


def two_layers(append: str, attention: str, num_tokens: int | None, num_pages: int | None) -> str:
    """MLIR of two layers as a step has them: each appends to its kv, then attends to it."""
    kv = TensorType((num_pages, 2, HEADS, 16, DIM), "bf16")
    q, ints = TensorType((num_tokens, HEADS, DIM), "f32"), TensorType((num_tokens,), "i32")
    table = TensorType((None if num_tokens is None else 4,) * 2, "i32")
    seqs = TensorType((table.shape[0],), "i32")
    attend = PagedAttention()
    attend_types = [q, kv, table, ints, ints, seqs, seqs]
    attend_call = attend.verify(
        [*attend_types[:5], TensorType((None,), "i32"), seqs, None], {"scale": 0.2, "window": 0}
    )
    append_call = OP.verify([kv, q, q, ints], {})
    last = f"({kv}, {q}, {q}, {ints}) -> {kv}"
    start = TensorType((None,), "i32")
    attends = f"({q}, {kv}, {table}, {ints}, {ints}, {start}, {seqs}) -> {q}"
    rest = "%table, %seq, %pos, %start, %len"
    return f"""
module @m {{
{lowering(OP, append).emit(append_call, "append")}
{lowering(attend, attention).emit(attend_call, "attend")}
func.func @main(%q: {q}, %slots: {ints}, %table: {table}, %seq: {ints}, %pos: {ints},
                %start: {start}, %len: {seqs}, %kv0: {kv}, %kv1: {kv}) -> {q} {{
  %a0 = func.call @append(%kv0, %q, %q, %slots) : {last}
  %x0 = func.call @attend(%q, %a0, {rest}) : {attends}
  %a1 = func.call @append(%kv1, %x0, %x0, %slots) : {last}
  %x1 = func.call @attend(%x0, %a1, {rest}) : {attends}
  return %x1 : {q}
}}
}}
"""


FORMS = [("cpu", "rows", "vectors"), ("cpu", "scatter", "loops"), ("vulkan", "scatter", "loops")]
GPUS = [
    pytest.param(t, "scatter", "loops", marks=pytest.mark.targets)
    for t in ("cuda:sm_80", "rocm:gfx942", "metal")
]


@pytest.mark.parametrize(("target", "append", "attention"), [*FORMS, *GPUS])
def test_the_cache_is_written_in_place(target: str, append: str, attention: str) -> None:
    flags = resolve(target).flags
    dynamic = to_stream(two_layers(append, attention, None, None), flags)
    assert "stream.cmd.dispatch" in dynamic
    assert "stream.cmd.copy" not in dynamic
    assert "stream.cmd.fill" not in dynamic
    # With every size fixed, what is allocated can be read: never as much as the pages.
    fixed = to_stream(two_layers(append, attention, 4, 4096), flags)
    assert "stream.cmd.copy" not in fixed
    allocated = re.findall(r"stream\.resource\.alloca .*\{%c(\d+)(?:_\d+)?\}", fixed)
    assert allocated
    assert max(map(int, allocated)) < 4096 * 2 * HEADS * 16 * DIM * 2


def test_f16_pages_are_refused_on_vulkan() -> None:
    call = OP.verify(types(dtype="f16"), {})
    reason = lowering(OP, "scatter").supports(call, resolve("vulkan"))
    assert reason == "f16 KV pages compute wrong results on a Vulkan driver; use f32 or bf16"
    assert lowering(OP, "scatter").supports(call, resolve("cuda:sm_80")) is None


@pytest.mark.targets
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_vulkan_matches_the_reference(dtype: str, tmp_path: Path) -> None:
    path = compile_text(append_and_read(16, dtype, "scatter"), "vulkan", tmp_path / "m.vmfb")
    arrays = operands([17, 40, 39, 64], 16)
    y = run_with_tool(path, "vulkan", list(zip(arrays, [dtype, "f32", "f32", "i32"], strict=True)))
    np.testing.assert_array_equal(y, expected_pages(arrays, dtype))


@pytest.mark.targets
@pytest.mark.parametrize("dtype", ["int8", "fp8"])
def test_bytes_on_vulkan(dtype: str, tmp_path: Path) -> None:
    operand_types, arrays = byte_arrays(dtype)
    path = compile_text(module(OP, operand_types, {}, "scatter"), "vulkan", tmp_path / "m.vmfb")
    inputs = list(zip(arrays, ["i8", "f32", "f32", "i32"], strict=True))
    y, expected = run_with_tool(path, "vulkan", inputs), OP.reference(*arrays)
    # Vulkan's division may be off by 2.5 units in the last place: so may be a scale.
    assert np.isclose(read(y, DIM), read(expected, DIM), rtol=1e-6, equal_nan=True).mean() > 0.99


@pytest.mark.targets
@pytest.mark.parametrize("dtype", ["int8", "fp8"])
@pytest.mark.parametrize("target", ["cuda:sm_80", "rocm:gfx942", "metal"])
def test_bytes_compile_for_gpus(target: str, dtype: str, tmp_path: Path) -> None:
    text = module(OP, byte_arrays(dtype)[0], {}, "scatter")
    assert compile_text(text, target, tmp_path / "m.vmfb").stat().st_size > 0
