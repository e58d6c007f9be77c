"""llm.linear: verifier, lowerings against the reference, rows equal in any batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmir.dialect_ext.base import Call
from llmir.dialect_ext.linear import Linear
from llmir.dialect_ext.registry import choose
from llmir.dialect_ext.types import TensorType
from llmir.errors import CompileError, VerifyError
from llmir.targets import resolve

from .lowered import Together, compile_text, compile_together, from_bf16, load, put, to_bf16

Array = np.ndarray[Any, Any]
OP = Linear()
VARIANTS = ("tiled", "scalar")


def call_of(n: int, k: int, dtype: str, *, bias: bool = False) -> Call:
    operands = [
        TensorType((None, k), "f32"),
        TensorType((n, k), dtype),
        TensorType((n,), "f32") if bias else None,
    ]
    return OP.verify(operands, {})


def module(call: Call, variant: str) -> str:
    lowering = next(x for x in OP.lowerings if x.variant == variant)
    args = ", ".join(f"%{n}: {t}" for n, t in call.present)
    names = ", ".join(f"%{n}" for n, _ in call.present)
    types = ", ".join(str(t) for _, t in call.present)
    return f"""
{lowering.emit(call, "op")}
func.func @main({args}) -> {call.results[0]} {{
  %y = func.call @op({names}) : ({types}) -> {call.results[0]}
  return %y : {call.results[0]}
}}
"""


def compiled(call: Call, variant: str, path: Path) -> Callable[..., Array]:
    """The op on the CPU; call it with float32 arrays, which are rounded to its dtypes."""
    return caller(load(compile_text(module(call, variant), "cpu", path / "op.vmfb")), call)


def caller(main: Callable[..., Any], call: Call) -> Callable[..., Array]:
    dtypes = [t.dtype for _, t in call.present]
    return lambda *arrays: np.array(
        main(*(put(a, d) for a, d in zip(arrays, dtypes, strict=True))).to_host()
    )


SIZES, DTYPES = ((7, 36, True), (130, 64, False)), ("f32", "bf16", "f16")


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Together:
    """Every size, dtype and variant."""
    texts = {
        (size, dtype, variant): module(call_of(*size[:2], dtype, bias=size[2]), variant)
        for size, dtype, variant in itertools.product(SIZES, DTYPES, VARIANTS)
    }
    return compile_together(texts, tmp_path_factory.mktemp("linear") / "m.vmfb")


def rounded(values: Array, dtype: str) -> Array:
    """Float32 values as `dtype` has them."""
    if dtype == "bf16":
        return from_bf16(to_bf16(values))
    return values.astype(np.float16).astype(np.float32) if dtype == "f16" else values


def arrays(tokens: int, n: int, k: int, dtype: str) -> tuple[Array, Array]:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((tokens, k), dtype=np.float32)
    return x, rounded(rng.standard_normal((n, k), dtype=np.float32), dtype)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k", "bias"), SIZES)
def test_lowering_computes_the_reference(
    n: int, k: int, bias: bool, dtype: str, variant: str, together: Together
) -> None:
    run = caller(together.mains[(n, k, bias), dtype, variant], call_of(n, k, dtype, bias=bias))
    b = np.linspace(-3, 3, n, dtype=np.float32)
    for tokens in (1, 2, 17, 64):
        x, w = arrays(tokens, n, k, dtype)
        expected = x.astype(np.float64) @ w.astype(np.float64).T + (b if bias else 0)
        y = run(x, w, b) if bias else run(x, w)
        assert y.shape == expected.shape
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        reference = OP.reference(x, w, b if bias else None)
        np.testing.assert_allclose(reference, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_rows_are_bit_equal_in_any_batch(dtype: str, variant: str, tmp_path: Path) -> None:
    run = compiled(call_of(70, 64, dtype), variant, tmp_path)
    x, w = arrays(140, 70, 64, dtype)
    whole = run(x, w)
    for tokens in (0, 1, 2, 3, 4, 7, 8, 9, 63, 64, 65, 67, 128, 129):
        assert run(x[:tokens], w).tobytes() == whole[:tokens].tobytes(), tokens
    for row in range(0, 140, 11):
        assert run(x[row : row + 1], w).tobytes() == whole[row].tobytes(), row


def test_which_variant_a_call_gets() -> None:
    call = call_of(8, 64, "bf16")
    assert choose(call, resolve("cpu"), {}).lowering.provider == "cpu_c"
    portable = {"linear": ["portable"]}
    assert choose(call, resolve("cpu"), portable).lowering.variant == "tiled"
    assert choose(call, resolve("vulkan"), {}).lowering.provider == "vulkan_spirv"
    assert choose(call, resolve("metal"), {}).lowering.variant == "scalar"
    odd = choose(call_of(8, 33, "f32"), resolve("cpu"), {})
    assert odd.lowering.variant == "scalar"
    assert odd.refused == (
        "cpu_c: K = 33 is not a multiple of 32",
        "portable/tiled: K = 33 is not a multiple of 4",
    )


def test_activations_that_may_be_rounded_get_the_kernels() -> None:
    def chosen(dtype: str, activations: str) -> str:
        call = OP.verify(call_of(8, 64, dtype).operands, {"activations": activations})
        return choose(call, resolve("cpu"), {}).lowering.provider

    for dtype in ("bf16", "f16", "f32"):
        assert {chosen(dtype, a) for a in ("bf16", "bf16+", "int8+", "f32")} == {"cpu_c"}
        with pytest.raises(CompileError, match="activations are .*, not int16"):
            chosen(dtype, "int16")


def test_columns_that_no_vector_divides(tmp_path: Path) -> None:
    run = compiled(call_of(5, 33, "f32"), "scalar", tmp_path)
    x, w = arrays(3, 5, 33, "f32")
    np.testing.assert_allclose(run(x, w), x @ w.T, rtol=1e-5, atol=1e-5)


def test_f16_is_refused_where_it_computes_wrong_results() -> None:
    with pytest.raises(CompileError, match="f16 weights compute wrong results on a Vulkan driver"):
        choose(call_of(8, 64, "f16"), resolve("vulkan"), {})


@pytest.mark.parametrize(
    ("x", "weight", "bias", "message"),
    [
        (
            "tensor<?x64xf32>",
            "tensor<8x32xf32>",
            None,
            "operand 'weight' is tensor<8x32xf32>, but dim K of [N, K] is 64 in operand 'x'",
        ),
        ("tensor<?x?xf32>", "tensor<8x64xf32>", None, "must have K = 64 static"),
        ("tensor<?x64xf32>", "tensor<?x64xf32>", None, "weight must be static"),
        ("tensor<?x64xf32>", "tensor<8x64xi8>", None, "'weight' must be f32 or bf16 or f16"),
        ("tensor<?x64xbf16>", "tensor<8x64xf32>", None, "operand 'x' must be f32"),
        ("tensor<?x64xf32>", "tensor<8x64xf32>", "tensor<9xf32>", "'bias' is tensor<9xf32>"),
        ("tensor<64xf32>", "tensor<8x64xf32>", None, "operand 'x' must be [T, K]"),
    ],
)
def test_verifier(x: str, weight: str, bias: str | None, message: str) -> None:
    operands = [TensorType.parse(x), TensorType.parse(weight), bias and TensorType.parse(bias)]
    with pytest.raises(VerifyError) as error:
        OP.verify(operands, {})  # type: ignore[arg-type]
    assert str(error.value).startswith("llm.linear: ")
    assert message in str(error.value)


@pytest.mark.targets
@pytest.mark.parametrize("target", ["vulkan", "cuda:sm_80", "rocm:gfx942", "rocm:gfx1100", "metal"])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_compiles_for_gpus(dtype: str, target: str, tmp_path: Path) -> None:
    call = call_of(48, 64, dtype, bias=True)
    choice = choose(call, resolve(target), {"linear": ["portable"]})
    compile_text(module(call, choice.lowering.variant), target, tmp_path / "op.vmfb")


@pytest.mark.targets
@pytest.mark.parametrize("target", ["cpu:aarch64", "cpu:x86-64-v3", "cpu:x86-64-v4"])
def test_tiles_compile_for_other_cpus(target: str, tmp_path: Path) -> None:
    compile_text(module(call_of(48, 64, "bf16"), "tiled"), target, tmp_path / "op.vmfb")
