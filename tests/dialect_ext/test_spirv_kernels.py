"""The Vulkan kernels on Mesa's software device: values, and what may not change a bit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import iree.runtime as rt
import numpy as np
import pytest

from llmir.compiler.iree_compile import to_module, to_stream
from llmir.dialect_ext.base import Lowering, Op
from llmir.dialect_ext.linear import Linear
from llmir.dialect_ext.paged_attention import PagedAttention
from llmir.dialect_ext.quantized_matmul import QuantizedMatmul
from llmir.dialect_ext.spirv_kernels import PROVIDER
from llmir.dialect_ext.types import TensorType
from llmir.runtime.devices import open_device
from llmir.runtime.transfer import ELEMENT_TYPES, read_back
from llmir.targets import resolve

from .lowered import NUMPY_DTYPES, from_bf16, module, to_bf16
from .ragged import Array, Cache, Heads, Ragged
from .test_paged_attention import inputs, stored, types

VULKAN = resolve("vulkan")
ATTENTION, QUANTIZED, LINEAR = PagedAttention(), QuantizedMatmul(), Linear()
ELEMENTS = {**ELEMENT_TYPES, "i32": rt.HalElementType.SINT_32}


def some_later(names: Iterable[str], *now: str) -> list[Any]:
    """Parameters: a software device takes seconds to compile a kernel, so most run in targets."""
    return [n if n in now else pytest.param(n, marks=pytest.mark.targets) for n in names]


def kernel(op: Op) -> Lowering:
    return next(x for x in op.lowerings if x.provider == PROVIDER)


class OnVulkan:
    """An op through its Vulkan kernels, compiled once, called with (values, dtype) pairs."""

    def __init__(
        self,
        path: Path,
        op: Op,
        operands: Sequence[TensorType | None],
        attrs: Mapping[str, Any],
    ) -> None:
        self.device = open_device("vulkan://0")
        call = op.verify(operands, attrs)
        assert kernel(op).supports(call, VULKAN) is None
        text = module(op, operands, attrs, "", kernel(op))
        file = path / "op.vmfb"
        to_module(to_stream(text, VULKAN.flags), VULKAN.flags, file)
        instance = rt.VmInstance()
        code = rt.VmModule.copy_buffer(instance, file.read_bytes())
        self.context = rt.VmContext(instance, [rt.create_hal_module(instance, self.device), code])
        self.function = code.lookup_function("main")

    def __call__(self, *arguments: tuple[Array, str]) -> Array:
        # What is freed here holds NaN, and the result may lie there.
        self.put(np.full(1 << 18, np.nan), "f32")
        given, results = rt.VmVariantList(len(arguments)), rt.VmVariantList(1)
        for values, dtype in arguments:
            given.push_ref(self.put(values, dtype))
        self.context.invoke(self.function, given, results)
        return read_back(self.device, results.get_as_object(0, rt.HalBufferView), np.float32)

    def put(self, values: Array, dtype: str) -> rt.HalBufferView:
        is_bf16 = dtype == "bf16"
        return self.device.allocator.allocate_buffer_copy(
            memory_type=rt.MemoryType.DEVICE_LOCAL,
            allowed_usage=rt.BufferUsage.DEFAULT | rt.BufferUsage.MAPPING,
            device=self.device,
            buffer=to_bf16(values) if is_bf16 else np.array(values, NUMPY_DTYPES[dtype], order="C"),
            element_type=ELEMENTS[dtype],
        )


# -- products ------------------------------------------------------------------------------

# N, K, group size, bits, zero point, mins, bias: odd N and K, groups of half a unit, long rows.
QUANTISED = {
    "q4_1": (37, 96, 32, 4, 0, True, False),
    "q4_0-bias": (5, 160, 32, 4, 8, False, True),
    "int4-g128": (64, 2176, 128, 4, 8, False, False),
    "int4-g16": (19, 352, 16, 4, 3, True, True),
    "q8_0": (130, 32, 32, 8, 0, False, False),
    "q6_k": (9, 1056, 16, 8, 0, False, True),
}


@pytest.mark.parametrize("name", some_later(QUANTISED, "q4_1"))
def test_quantised_products(name: str, tmp_path: Path) -> None:
    n, k, g, bits, zero_point, has_mins, has_bias = QUANTISED[name]
    groups, rng = k // g, np.random.default_rng(0)
    f32 = TensorType((n, groups), "f32")
    main = OnVulkan(
        tmp_path,
        QUANTIZED,
        [
            TensorType((None, k), "f32"),
            TensorType((n, groups, g * bits // 8), "i8"),
            f32,
            f32 if has_mins else None,
            TensorType((n,), "f32") if has_bias else None,
        ],
        attrs := {"bits": bits, "group_size": g, "zero_point": zero_point},
    )
    quants = rng.integers(-128, 128, (n, groups, g * bits // 8)).astype(np.int8)
    scales = rng.uniform(0.01, 0.02, (n, groups)).astype(np.float32)
    mins = rng.standard_normal((n, groups)).astype(np.float32) / 10 if has_mins else None
    bias = rng.standard_normal(n).astype(np.float32) if has_bias else None
    x = rng.standard_normal((9, k)).astype(np.float32)
    given = [(v, "f32") for v in (scales, mins, bias) if v is not None]
    expected = QUANTIZED.reference(x, quants, scales, mins, bias, **attrs)
    check_rows(lambda rows: main((x[rows], "f32"), (quants, "i8"), *given), expected)


@pytest.mark.targets
@pytest.mark.parametrize(("dtype", "n", "k"), [("bf16", 37, 24), ("f32", 70, 1100)])
def test_float_products(dtype: str, n: int, k: int, tmp_path: Path) -> None:
    operands = [TensorType((None, k), "f32"), TensorType((n, k), dtype), TensorType((n,), "f32")]
    main = OnVulkan(tmp_path, LINEAR, operands, {})
    rng = np.random.default_rng(1)
    x, weight = (rng.standard_normal(shape).astype(np.float32) for shape in ((6, k), (n, k)))
    bias = rng.standard_normal(n).astype(np.float32)
    seen = from_bf16(to_bf16(weight)) if dtype == "bf16" else weight
    check_rows(
        lambda rows: main((x[rows], "f32"), (weight, dtype), (bias, "f32")),
        LINEAR.reference(x, seen, bias),
    )


def check_rows(compute: Callable[[list[int]], Array], expected: Array) -> None:
    """All rows against the reference; alone and in any company they have the same bits."""
    y = compute(list(range(len(expected))))
    np.testing.assert_allclose(y, expected, atol=2e-6 * np.abs(expected).max(), rtol=0)
    for rows in ([0], [len(expected) - 1], [1, 0], [4, 2, 3, 1, 0]):
        np.testing.assert_array_equal(compute(rows), y[rows])


# -- attention -----------------------------------------------------------------------------

SINKS = np.array([1.0, -2.0, 3.0, 0.5], np.float32)
# heads, format of pages, window, softcap, sinks
ATTENDING = {
    "f32": (Heads(), "f32", 0, 0.0, None),
    "bf16-window": (Heads(), "bf16", 37, 0.0, None),
    "int8-softcap": (Heads(q=8, kv=2, dim=128, page_size=8), "int8", 0, 20.0, None),
    "fp8-sinks": (Heads(q=4, kv=4, dim=20, page_size=32), "fp8", 150, 0.0, SINKS),
}
LENGTHS = (40, 17, 33, 300, 1)
MIXED = [(0, 0, 40), (1, 16, 17), (2, 12, 33), (3, 299, 300), (4, 0, 1)]


@pytest.mark.parametrize("name", some_later(ATTENDING, "bf16-window"))
def test_attention_over_ragged_batches(name: str, tmp_path: Path) -> None:
    """Shuffled pages; NaN in every slot that no position of a row owns."""
    heads, dtype, window, softcap, sinks = ATTENDING[name]
    attrs = {"scale": 0.125, "window": window, "softcap": softcap}
    main = OnVulkan(tmp_path, ATTENTION, types(heads, dtype, sinks=sinks is not None), attrs)
    cache = Cache(LENGTHS, heads)
    more = [] if sinks is None else [(sinks, "f32")]

    def attend(batch: Ragged) -> dict[tuple[int, int], Array]:
        return dict(zip(batch.rows, main(*inputs(batch, dtype), *more), strict=True))

    batch = cache.batch(MIXED, window=window)
    expected = ATTENTION.reference(*stored(batch, dtype), sinks, **attrs)
    together = attend(batch)
    np.testing.assert_allclose(
        np.stack(list(together.values())), expected, atol=5e-6, rtol=0, err_msg=name
    )
    # Few tokens: a workgroup for each chunk of the context, and spare columns of the table.
    for parts in ([MIXED[3]], [MIXED[4], MIXED[3], MIXED[1]], [(0, 30, 40)]):
        alone = attend(cache.batch(parts, window=window, spare_columns=40))
        for row, y in alone.items():
            np.testing.assert_array_equal(y, together[row], err_msg=f"{name} {row}")


# -- what they refuse ----------------------------------------------------------------------


def reason(op: Op, operands: Sequence[TensorType | None], attrs: Mapping[str, Any]) -> str | None:
    return kernel(op).supports(op.verify(operands, attrs), VULKAN)


def test_what_the_kernels_cannot_take_is_said() -> None:
    x = TensorType((None, 40), "f32")
    quants, scales = TensorType((3, 5, 4), "i8"), TensorType((3, 5), "f32")
    quantised = {"bits": 4, "group_size": 8, "zero_point": 0}
    assert reason(QUANTIZED, [x, quants, scales, None, None], quantised) == (
        "rows of 20 bytes are not whole units of 16"
    )
    quants, scales = TensorType((3, 4, 12), "i8"), TensorType((3, 4), "f32")
    x = TensorType((None, 48), "f32")
    quantised = {"bits": 8, "group_size": 12, "zero_point": 0}
    assert reason(QUANTIZED, [x, quants, scales, None, None], quantised) == (
        "groups of 12 bytes are neither whole units of 16 nor half"
    )
    rounded = {**quantised, "activations": "int8"}
    assert "not int8" in str(reason(QUANTIZED, [x, quants, scales, None, None], rounded))
    x, weight = TensorType((None, 20), "f32"), TensorType((3, 20), "bf16")
    assert reason(LINEAR, [x, weight, None], {}) == "rows of 40 bytes are not whole units of 16"
    assert "not f16" in str(reason(LINEAR, [x, TensorType((3, 20), "f16"), None], {}))
    attrs = {"scale": 1.0, "window": 0}
    assert "not f16" in str(reason(ATTENTION, types(Heads(), "f16"), attrs))
    assert "multiple of 4" in str(reason(ATTENTION, types(Heads(dim=22)), attrs))
    many = Heads(q=32, kv=1, dim=128)
    assert "32 heads of 128 on a KV head need" in str(reason(ATTENTION, types(many), attrs))
