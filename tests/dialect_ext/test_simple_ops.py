"""The small ops: verifier, and the portable lowering on CPU and Vulkan against the reference."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from llmir import formats
from llmir.dialect_ext.argmax import Argmax
from llmir.dialect_ext.base import AttrValue, Op
from llmir.dialect_ext.embedding import Embedding, QuantizedEmbedding
from llmir.dialect_ext.gated_mul import GeluMul, SiluMul
from llmir.dialect_ext.registry import choose
from llmir.dialect_ext.rms_norm import RmsNorm
from llmir.dialect_ext.rope import Rope
from llmir.dialect_ext.topk import Topk
from llmir.dialect_ext.types import TensorType
from llmir.errors import CompileError, VerifyError
from llmir.targets import resolve

from .lowered import Together, all_results_with_tool, compile_text, compile_together, module, put

Array = np.ndarray[Any, Any]
TARGETS = {"cpu": "local-task", "vulkan": "vulkan"}
rng = np.random.default_rng(7)
Run = Callable[..., list[Array]]


GATED, DTYPES, MODES = (SiluMul(), GeluMul()), ("f32", "f16", "bf16"), ("q8_0", "q4_0", "int8")
NORMS, ROPES, TOPS, ARGMAX = (
    ((1, 64), (7, 576), (33, 37)), ((3, 64), (1, 6)), ((131, 64), (5, 5), (40, 1)), (1, 1000),
)  # fmt: skip


def tensor(*shape: int | None, dtype: str = "f32") -> TensorType:
    return TensorType(shape, dtype)


def calls() -> Iterator[tuple[Op, list[TensorType | None], dict[str, AttrValue]]]:
    """What the tests below run."""
    ids = tensor(None, dtype="i32")
    for _, dim in NORMS:
        yield RmsNorm(), [tensor(None, dim), tensor(dim)], {"eps": 1e-5}
    for columns, k in TOPS:
        yield Topk(), [tensor(None, columns)], {"k": k}
    for columns in ARGMAX:
        yield Argmax(), [tensor(None, columns)], {}
    for op in GATED:
        yield op, [tensor(None, 131), tensor(None, 131)], {}
    for heads, head_dim in ROPES:
        yield Rope(), [tensor(None, heads, head_dim), ids, tensor(50, head_dim)], {}
    for dtype in DTYPES:
        yield Embedding(), [ids, tensor(40, 24, dtype=dtype)], {}
    for mode in MODES_AND_FORMATS:
        operands, attrs = quantized_table(grouped(mode))
        yield QuantizedEmbedding(), [ids, *types_of(operands)], attrs


def types_of(operands: Sequence[tuple[Array, str] | None]) -> list[TensorType | None]:
    return [None if o is None else TensorType(tuple(o[0].shape), o[1]) for o in operands]


def lowered_text(
    op: Op, types: Sequence[TensorType | None], attrs: dict[str, AttrValue], target: str
) -> str:
    """Raises CompileError: it is refused there."""
    call = op.verify(types, attrs)
    lowering = choose(call, resolve(target), {op.name: ["portable"]}).lowering
    return module(op, types, attrs, lowering.variant)


@pytest.fixture(scope="module")
def run_all(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """run_all(op, operands, attributes, target) → its results; dim 0 of the first operand is
    dynamic, as tokens are.  All of a target is compiled as one module."""

    @functools.cache
    def together(target: str) -> Together:
        texts = {}
        for call in calls():
            with contextlib.suppress(CompileError):  # it is the tests that ask for it
                texts[lowered_text(*call, target)] = lowered_text(*call, target)
        path = tmp_path_factory.mktemp("ops") / f"{target}.vmfb"
        return compile_together(texts, path, target)

    def run(
        op: Op,
        operands: list[tuple[Array, str] | None],
        attrs: dict[str, AttrValue],
        target: str,
    ) -> list[Array]:
        types = types_of(operands)
        assert types[0] is not None
        rows = types[0].shape[0]
        types = [
            None
            if t is None
            else TensorType((None, *t.shape[1:]) if t.shape[0] == rows else t.shape, t.dtype)
            for t in types
        ]
        text = lowered_text(op, types, attrs, target)
        made, present = together(target), [o for o in operands if o is not None]
        assert text in made.names, "`calls` lacks it"
        num_results = len(op.verify(types, attrs).results)
        if target == "cpu":
            results = made.mains[text](*(put(values, dtype) for values, dtype in present))
            results = results if num_results > 1 else [results]
            return [np.array(y.to_host()) for y in results]
        return all_results_with_tool(
            made.path, TARGETS[target], present, num_results, made.names[text]
        )

    return run


@pytest.fixture
def run(run_all: Run) -> Callable[..., Array]:
    """The first result of run_all."""
    return lambda *arguments: run_all(*arguments)[0]


@pytest.fixture(autouse=True)
def _the_same_numbers(run_all: Run) -> None:
    """Whichever tests ran before in this process."""
    rng.bit_generator.state = np.random.default_rng(7).bit_generator.state


def f32(*shape: int) -> Array:
    return rng.standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("rows", "dim"), NORMS)
def test_rms_norm(rows: int, dim: int, target: str, run: Callable[..., Array]) -> None:
    x, weight = f32(rows, dim) * 3, f32(dim)
    norm = LlamaRMSNorm(dim, eps=1e-5)
    norm.weight.data = torch.from_numpy(weight)
    expected = norm(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(RmsNorm().reference(x, weight, eps=1e-5), expected, atol=2e-6)
    got = run(RmsNorm(), [(x, "f32"), (weight, "f32")], {"eps": 1e-5}, target)
    np.testing.assert_allclose(got, expected, atol=5e-6)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("columns", "k"), TOPS)
def test_topk(columns: int, k: int, target: str, run_all: Run) -> None:
    x = np.round(f32(9, columns) * 4) / 2  # many are equal
    x[0] = -np.inf
    x[0, 1:3] = 1.5
    for row, number in ((1, np.nan), (2, np.inf), (3, -np.inf)):
        x[row, columns // 2] = number
    x[4] = -np.inf
    top = torch.from_numpy(x).topk(k)
    values, ids, weights = Topk().reference(x, k=k)
    good = [0, 3, 5, 6, 7, 8]
    assert np.isnan(values[[1, 2, 4]]).all()
    np.testing.assert_array_equal(values[good], top.values[good])
    np.testing.assert_array_equal(np.take_along_axis(x, ids, 1)[good], values[good])
    log_sum_exp = torch.from_numpy(x).logsumexp(1).numpy()
    np.testing.assert_allclose(values[good, 0] + np.log(weights[good]), log_sum_exp[good], 1e-6)
    for row in good:
        assert ids[row].tolist() == sorted(range(columns), key=lambda v: (-x[row, v], v))[:k]
    got = run_all(Topk(), [(x, "f32")], {"k": k}, target)
    np.testing.assert_array_equal(got[0], values)
    np.testing.assert_array_equal(got[1], ids)
    np.testing.assert_allclose(got[2], weights, rtol=1e-5)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("op", GATED, ids=lambda op: op.name)
def test_gated_mul(op: Op, target: str, run: Callable[..., Array]) -> None:
    gate, up = f32(9, 131) * 8, f32(9, 131)
    gate[0, :4] = [0.0, -100.0, 100.0, -87.5]  # exp of the negation overflows or vanishes
    gate[1, :4] = [1e18, -1e18, 1e30, -1e30]  # so do powers
    gates = {
        "silu_mul": torch.nn.functional.silu,
        "gelu_mul": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    }
    expected = gates[op.name](torch.from_numpy(gate)).numpy() * up
    np.testing.assert_allclose(op.reference(gate, up), expected, rtol=1e-6, atol=1e-6)
    got = run(op, [(gate, "f32"), (up, "f32")], {}, target)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("heads", "head_dim"), ROPES)
def test_rope(heads: int, head_dim: int, target: str, run: Callable[..., Array]) -> None:
    x = f32(11, heads, head_dim)
    positions = rng.permutation(50)[:11].astype(np.int32)
    angles = np.arange(50)[:, None] / 100.0 ** (np.arange(head_dim // 2) / (head_dim // 2))
    table = np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    q = torch.from_numpy(x).permute(1, 0, 2)[None]  # [1, H, T, D]
    both = np.concatenate([angles, angles], axis=1)[positions]
    cos, sin = (torch.from_numpy(f(both).astype(np.float32))[None] for f in (np.cos, np.sin))
    expected = apply_rotary_pos_emb(q, q, cos, sin)[0][0].permute(1, 0, 2).numpy()
    np.testing.assert_allclose(Rope().reference(x, positions, table), expected, atol=1e-6)
    got = run(Rope(), [(x, "f32"), (positions, "i32"), (table, "f32")], {}, target)
    np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding(dtype: str, target: str, run: Callable[..., Array]) -> None:
    table = torch.from_numpy(f32(40, 24))
    narrow = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[dtype]
    ids = np.array([3, 0, 39, 3, 17], np.int32)
    expected = torch.nn.functional.embedding(torch.from_numpy(ids), table.to(narrow)).float()
    call = Embedding().verify([TensorType((None,), "i32"), TensorType((40, 24), dtype)], {})
    if dtype == "f16" and target == "vulkan":
        # Computes silently wrong results on one driver, so it is refused there.
        with pytest.raises(CompileError, match="f16"):
            choose(call, resolve(target), {})
        return
    got = run(Embedding(), [(ids, "i32"), (table.numpy(), dtype)], {}, target)
    np.testing.assert_array_equal(got, expected.numpy())


MODES_AND_FORMATS = (*MODES, "q4_1", "q6_k")


def grouped(mode: str) -> formats.GroupQuantized:
    """A table that is quantised, or random blocks of a format."""
    if mode in formats.WEIGHT_MODES:
        values = f32(20, 256)
        weight = formats.Weight(
            name="t", shape=(20, 256), format=formats.get("f32"), raw=values.view(np.uint8)
        )
        groups = formats.quantize(weight, mode)
    else:
        fmt = formats.get(mode)
        raw = rng.integers(0, 256, (20, 256 // fmt.block_size, fmt.block_bytes), dtype=np.uint8)
        half = np.float16(0.01).view(np.uint16).item().to_bytes(2, "little")
        at = slice(0, 2) if mode == "q4_1" else slice(fmt.block_bytes - 2, fmt.block_bytes)
        raw[..., at] = np.frombuffer(half, np.uint8)
        if mode == "q4_1":
            raw[..., 2:4] = np.frombuffer(half, np.uint8)
        groups = formats.to_groups(
            formats.Weight(name="t", shape=(20, 256), format=fmt, raw=raw.reshape(-1))
        )
    assert isinstance(groups, formats.GroupQuantized)
    return groups


def quantized_table(
    groups: formats.GroupQuantized,
) -> tuple[list[tuple[Array, str] | None], dict[str, AttrValue]]:
    """Its operands behind the ids, and its attributes."""
    lay = groups.layout
    mins = None if groups.mins is None else (groups.mins, "f32")
    attrs = {"bits": lay.bits, "group_size": lay.group_size, "zero_point": lay.zero_point}
    return [(groups.quants, "i8"), (groups.scales, "f32"), mins], attrs


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("mode", MODES_AND_FORMATS)
def test_quantized_embedding(mode: str, target: str, run: Callable[..., Array]) -> None:
    groups = grouped(mode)
    ids = np.array([19, 0, 5, 5], np.int32)
    operands, attrs = quantized_table(groups)
    got = run(QuantizedEmbedding(), [(ids, "i32"), *operands], attrs, target)
    np.testing.assert_allclose(got, groups.dequantize()[ids], rtol=1e-6, atol=1e-7)


F = "f32"


@pytest.mark.parametrize(
    ("op", "operands", "attrs", "message"),
    [
        (RmsNorm(), [((2, 8), F)], {"eps": 1e-5}, "expected 2 operands, got 1"),
        (
            RmsNorm(),
            [((None, 8), F), ((9,), F)],
            {"eps": 1e-5},
            r"operand 'weight' is tensor<9xf32>, but dim D of \[D\] is 8 in operand 'x'",
        ),
        (RmsNorm(), [((2, 8), "f16"), ((8,), F)], {"eps": 1e-5}, "operand 'x' must be f32, got"),
        (RmsNorm(), [((2, 8, 1), F), ((8,), F)], {"eps": 1e-5}, r"must be \[R, D\], got tensor<2"),
        (RmsNorm(), [((2, 8), F), ((8,), F)], {}, r"attribute 'eps' \(float\) is missing"),
        (RmsNorm(), [((2, 8), F), ((8,), F)], {"eps": 1}, "attribute 'eps' must be float, got 1"),
        (RmsNorm(), [((2, 8), F), ((8,), F)], {"eps": -1.0}, "eps must be positive, got -1.0"),
        (RmsNorm(), [((2, 8), F), ((8,), F)], {"eps": 1.0, "b": 1}, "unknown attribute 'b'"),
        (RmsNorm(), [((2, 8), F), None], {"eps": 1e-5}, r"operand 'weight' \[D\] is missing"),
        (Rope(), [((None, 2, 7), F), ((None,), "i32"), ((5, 7), F)], {}, "D must be even"),
        (SiluMul(), [((None, 7), F), ((None, 8), F)], {}, "dim F"),
        (Embedding(), [((3,), "i64"), ((4, 4), F)], {}, "operand 'ids' must be i32"),
        (
            QuantizedEmbedding(),
            [((3,), "i32"), ((4, 2, 16), "i8"), ((4, 2), F), None],
            {"bits": 8, "group_size": 32, "zero_point": 0},
            "16 bytes a group; groups of 32 at 8 bits have 32",
        ),
    ],
)
def test_the_verifier_says_what_is_wrong(
    op: Op, operands: list[Any], attrs: dict[str, AttrValue], message: str
) -> None:
    types = [None if o is None else TensorType(*o) for o in operands]
    with pytest.raises(VerifyError, match=message) as error:
        op.verify(types, attrs)
    assert str(error.value).startswith(f"llm.{op.name}: ")


@pytest.mark.parametrize("columns", ARGMAX)
@pytest.mark.parametrize("target", TARGETS)
def test_argmax(target: str, columns: int, run: Callable[..., Array]) -> None:
    """Ties, and what is not finite, in every part of a row; of -inf alone there is no largest."""
    x = rng.standard_normal((12, columns)).astype(np.float32)
    last = columns - 1
    x[0] = 2.5  # all equal: the first
    x[1, [0, last]] = 9
    x[2, [columns // 2, last]] = 9
    x[3, last] = np.nan
    x[4, 0] = np.inf
    x[5, columns // 2] = np.nan
    x[6, last] = np.inf
    x[7] = -np.inf
    x[8, : columns // 2] = -np.inf
    x[9] = -3e38
    got = run(Argmax(), [(x, "f32")], {}, target)
    np.testing.assert_array_equal(got, Argmax().reference(x))


@pytest.mark.targets
@pytest.mark.parametrize("target", ["cuda", "rocm:gfx942", "rocm:gfx1100", "metal", "vulkan:ada"])
def test_argmax_compiles_for(target: str, tmp_path: Path) -> None:
    text = module(Argmax(), [TensorType((None, 49152), "f32")], {}, "")
    assert compile_text(text, target, tmp_path / "argmax.vmfb").stat().st_size > 0
