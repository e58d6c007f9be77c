"""llm.quantized_matmul: verifier, lowerings against the reference, rows equal in any batch."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import iree.runtime as rt
import numpy as np
import pytest

from llmir.compiler.iree_compile import to_stream
from llmir.dialect_ext.base import Call
from llmir.dialect_ext.quantized_matmul import QuantizedMatmul
from llmir.dialect_ext.registry import choose
from llmir.dialect_ext.types import TensorType
from llmir.errors import CompileError, VerifyError
from llmir.formats.base import GroupQuantized, QuantLayout
from llmir.targets import resolve

from .lowered import Together, compile_text, compile_together, put

Array = np.ndarray[Any, Any]
OP = QuantizedMatmul()
VARIANTS = ("tiled", "scalar")

# name: bits, group size (0: the row), zero point, mins, N, K
LAYOUTS = {
    "q4_0": (4, 32, 8, False, 7, 96),
    "q4_1": (4, 32, 0, True, 100, 64),
    "q4_g16": (4, 16, 8, False, 5, 48),
    "q4_g16_mins": (4, 16, 0, True, 6, 16),
    "q4_g128": (4, 128, 3, True, 9, 256),
    "q8_0": (8, 32, 0, False, 130, 32),
    "q8_g16_mins": (8, 16, 0, True, 3, 64),
    "q8_row": (8, 0, 0, False, 2, 576),
    "q8_row_asymmetric": (8, 0, -7, True, 11, 60),
}


def weight(name: str) -> GroupQuantized:
    bits, g, zero_point, mins, n, k = LAYOUTS[name]
    g = g or k
    rng = np.random.default_rng(1)
    return GroupQuantized(
        layout=QuantLayout(bits=bits, group_size=g, zero_point=zero_point, has_mins=mins),
        quants=rng.integers(-128, 128, (n, k // g, g * bits // 8)).astype(np.int8),
        scales=rng.uniform(-0.02, 0.02, (n, k // g)).astype(np.float32),
        mins=rng.normal(0, 0.1, (n, k // g)).astype(np.float32) if mins else None,
    )


def attrs(w: GroupQuantized) -> dict[str, int]:
    lay = w.layout
    return {"bits": lay.bits, "group_size": lay.group_size, "zero_point": lay.zero_point}


def call_of(w: GroupQuantized, *, tokens: int | None = None, bias: bool = False) -> Call:
    n, k = w.shape
    mins = TensorType(w.scales.shape, "f32") if w.mins is not None else None
    operands = [
        TensorType((tokens, k), "f32"),
        TensorType(w.quants.shape, "i8"),
        TensorType(w.scales.shape, "f32"),
        mins,
        TensorType((n,), "f32") if bias else None,
    ]
    return OP.verify(operands, attrs(w))


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


def compiled(
    call: Call, variant: str, path: Path, driver: str = "local-task"
) -> Callable[..., Array]:
    vmfb = compile_text(module(call, variant), "cpu", path / "op.vmfb")
    main = rt.load_vm_flatbuffer_file(str(vmfb), driver=driver).main
    return lambda *arrays: np.array(main(*(a for a in arrays if a is not None)).to_host())


def call_with_bias(name: str) -> Call:
    w = weight(name)
    return call_of(w, bias=w.layout.has_mins)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Together:
    """Every layout, by its name and variant."""
    cases = itertools.product(LAYOUTS, VARIANTS)
    texts = {case: module(call_with_bias(case[0]), case[1]) for case in cases}
    return compile_together(texts, tmp_path_factory.mktemp("matmul") / "m.vmfb")


def activations(tokens: int, columns: int) -> Array:
    return np.random.default_rng(2).standard_normal((tokens, columns), dtype=np.float32)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_lowering_computes_the_reference(name: str, variant: str, together: Together) -> None:
    w = weight(name)
    bias = np.linspace(-1, 1, w.shape[0], dtype=np.float32) if w.layout.has_mins else None
    main, types = together.mains[name, variant], [t.dtype for _, t in call_with_bias(name).present]
    for tokens in (1, 2, 17, 64):
        x = activations(tokens, w.shape[1])
        expected = x.astype(np.float64) @ w.dequantize().astype(np.float64).T
        expected = expected if bias is None else expected + bias
        arrays = [a for a in (x, w.quants, w.scales, w.mins, bias) if a is not None]
        y = np.array(main(*map(put, arrays, types)).to_host())
        assert y.shape == expected.shape
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        reference = OP.reference(x, w.quants, w.scales, w.mins, bias, **attrs(w))
        np.testing.assert_allclose(reference, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_are_bit_equal_in_any_batch_on_any_threads(variant: str, tmp_path: Path) -> None:
    w = weight("q4_1")
    x = activations(195, w.shape[1])
    call = call_of(w)
    run = compiled(call, variant, tmp_path)
    whole = run(x, w.quants, w.scales, w.mins)
    for tokens in (0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 31, 63, 64, 65, 66, 71, 128, 129, 130):
        part = run(x[:tokens], w.quants, w.scales, w.mins)
        assert part.tobytes() == whole[:tokens].tobytes(), tokens
    for row in range(0, 195, 13):
        alone = run(x[row : row + 1], w.quants, w.scales, w.mins)
        assert alone.tobytes() == whole[row].tobytes(), row
    one_thread = compiled(call, variant, tmp_path, driver="local-sync")
    assert one_thread(x, w.quants, w.scales, w.mins).tobytes() == whole.tobytes()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_static_number_of_tokens(variant: str, tmp_path: Path) -> None:
    w = weight("q4_1")
    x = activations(9, w.shape[1])
    y = compiled(call_of(w, tokens=9), variant, tmp_path)(x, w.quants, w.scales, w.mins)
    expected = x @ w.dequantize().T
    np.testing.assert_allclose(y, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_weight_is_never_widened_in_memory(variant: str) -> None:
    """The stream IR is one dispatch; all that it allocates is y."""
    stream = to_stream(module(call_of(weight("q4_1")), variant), resolve("cpu").flags)
    assert len(re.findall(r"stream\.cmd\.dispatch", stream)) == 1
    assert len(re.findall(r"stream\.resource\.alloc", stream)) == 1
    assert not re.findall(r"stream\.(cmd|async)\.(copy|clone)", stream)


def test_cpus_get_tiles_and_others_the_scalar_form() -> None:
    call = call_of(weight("q4_1"))
    assert choose(call, resolve("cpu"), {}).lowering.provider == "cpu_c"
    portable = {"quantized_matmul": ["portable"]}
    assert choose(call, resolve("cpu"), portable).lowering.variant == "tiled"
    choice = choose(call, resolve("metal"), {})
    assert choice.lowering.variant == "scalar"
    assert [r.partition(":")[0] for r in choice.refused] == ["cpu_c", "portable/tiled"]
    assert all("for CPUs" in r for r in choice.refused)


def test_activations_that_are_rounded_get_the_kernels() -> None:
    def chosen(format_name: str, activations: str, target: str = "cpu") -> tuple[str, str]:
        w = weight(format_name if format_name in LAYOUTS else "q4_1")
        names = {"format": format_name, "activations": activations}
        call = OP.verify(call_of(w).operands, attrs(w) | names)
        lowering = choose(call, resolve(target), {}).lowering
        return lowering.provider, lowering.variant

    for activations in ("int8", "int8+", "int16", "int16+", "bf16", "f32"):
        assert chosen("q4_1", activations) == ("cpu_c", "")
    assert chosen("q2_k", "int8+") == ("portable", "tiled")
    assert chosen("q4_1", "int8+", "vulkan") == ("vulkan_spirv", "")
    assert chosen("q4_1", "int8+", "metal") == ("portable", "scalar")
    with pytest.raises(CompileError, match="activations are float32 here, not int8"):
        chosen("q2_k", "int8")


def test_groups_that_no_vector_divides_get_the_scalar_form(tmp_path: Path) -> None:
    layout = QuantLayout(bits=4, group_size=6, has_mins=False)
    quants = np.arange(24, dtype=np.int8).reshape(4, 2, 3)
    w = GroupQuantized(layout=layout, quants=quants, scales=np.ones((4, 2), np.float32), mins=None)
    choice = choose(call_of(w), resolve("cpu"), {})
    assert choice.lowering.variant == "scalar"
    assert choice.refused == (
        "cpu_c: no packed layout for planes of no named format",
        "portable/tiled: a group's 3 bytes are not a multiple of 4",
    )
    x = activations(2, 12)
    y = compiled(call_of(w), "scalar", tmp_path)(x, w.quants, w.scales)
    np.testing.assert_allclose(y, x @ w.dequantize().T, rtol=1e-5, atol=1e-4)


X, QUANTS, SCALES = "tensor<?x64xf32>", "tensor<8x2x16xi8>", "tensor<8x2xf32>"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": "tensor<?x64xf16>"}, "operand 'x' must be f32, got tensor<?x64xf16>"),
        (
            {"x": "tensor<?x96xf32>"},
            "operand 'x' is tensor<?x96xf32>, but quants tensor<8x2x16xi8> have 2 groups of 32: "
            "K must be 64",
        ),
        ({"quants": "tensor<?x2x16xi8>"}, "quants must be static, got tensor<?x2x16xi8>"),
        (
            {"quants": "tensor<8x2x32xi8>"},
            "quants tensor<8x2x32xi8> have 32 bytes a group; groups of 32 at 4 bits have 16",
        ),
        (
            {"scales": "tensor<8x3xf32>"},
            "operand 'scales' is tensor<8x3xf32>, but dim G of [N, G] is 2 in operand 'quants'",
        ),
        (
            {"mins": "tensor<9x2xf32>"},
            "operand 'mins' is tensor<9x2xf32>, but dim N of [N, G] is 8 in operand 'quants'",
        ),
        ({"bias": "tensor<8x1xf32>"}, "operand 'bias' must be [N], got tensor<8x1xf32>"),
        ({"scales": None}, "operand 'scales' [N, G] is missing"),
        ({"bits": 5}, "bits must be 4 or 8, got 5"),
        (
            {"activations": "int4"},
            "activations must be int8, int8_16, bf16, int12, int16, f32, or one with a plus; got 'int4'",
        ),
        (
            {"group_size": 33},
            "group_size must be positive and fill whole bytes at 4 bits, got 33",
        ),
        (
            {"group_size": 0},
            "group_size must be positive and fill whole bytes at 4 bits, got 0",
        ),
    ],
)
def test_verifier(change: dict[str, Any], message: str) -> None:
    given = {"x": X, "quants": QUANTS, "scales": SCALES, "mins": SCALES, "bias": None}
    attributes = {"bits": 4, "group_size": 32, "zero_point": 0}
    for key, value in change.items():
        (given if key in given else attributes)[key] = value
    operands = [None if t is None else TensorType.parse(t) for t in given.values()]
    with pytest.raises(VerifyError) as error:
        OP.verify(operands, attributes)
    assert str(error.value) == f"llm.quantized_matmul: {message}"


@pytest.mark.targets
@pytest.mark.parametrize("target", ["vulkan", "cuda:sm_80", "rocm:gfx942", "rocm:gfx1100", "metal"])
@pytest.mark.parametrize("name", ["q4_1", "q4_g16", "q8_0", "q8_row"])
def test_compiles_for_gpus(name: str, target: str, tmp_path: Path) -> None:
    call = call_of(weight(name))
    choice = choose(call, resolve(target), {"quantized_matmul": ["portable"]})
    compile_text(module(call, choice.lowering.variant), target, tmp_path / "op.vmfb")


@pytest.mark.targets
@pytest.mark.parametrize("target", ["cpu:aarch64", "cpu:x86-64-v3", "cpu:x86-64-v4"])
def test_tiles_compile_for_other_cpus(target: str, tmp_path: Path) -> None:
    compile_text(module(call_of(weight("q4_1")), "tiled"), target, tmp_path / "op.vmfb")
