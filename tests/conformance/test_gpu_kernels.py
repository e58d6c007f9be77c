"""Every GPU kernel against its op's reference, emulated: none of this has run on a GPU.

The calls are those of the op's lowering, on buffers between forbidden pages (gpu_calls).  A row's
bits must be the same in every batch, whichever of an op's kernels computes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from dialect_ext.lowered import from_bf16, to_bf16
from dialect_ext.ragged import Cache, Heads

from llmir.dialect_ext.gpu_matmul import PIECES
from llmir.dialect_ext.registry import get_op
from llmir.dialect_ext.types import TensorType
from llmir.formats import packed
from plugins import gpu

from .gpu_calls import EmulatedGpu, GpuLowered
from .lowered_calls import NUMPY, Array

FORMATS = ("q4_0", "q4_1", "q8_0", "int8", "int4_g32", "int4_g64_zp", "int4_g128", "bf16")
DYNAMIC = TensorType((None,), "i32")


def tensor(array: Array | None, dtype: str = "", *, dynamic: int = 0) -> TensorType | None:
    """The type of an operand, its first dims dynamic."""
    if array is None:
        return None
    name = dtype or next(n for n, t in NUMPY.items() if array.dtype == t and n != "bf16")
    return TensorType((*[None] * dynamic, *array.shape[dynamic:]), name)


def machine() -> EmulatedGpu:
    return EmulatedGpu()


@pytest.mark.parametrize("rows", [1, 3])
def test_rms_norm(rows: int) -> None:
    rng = np.random.default_rng(rows)
    x, weight = rng.standard_normal((rows, 300), np.float32), rng.standard_normal(300, np.float32)
    op = get_op("rms_norm")
    lowered = GpuLowered(op, [tensor(x, dynamic=1), tensor(weight)], {"eps": 1e-5})
    (y,) = lowered(machine(), [x, weight])
    np.testing.assert_allclose(y, op.reference(x, weight, eps=1e-5), rtol=2e-6, atol=1e-6)
    (alone,) = lowered(machine(), [x[:1], weight])
    assert alone.tobytes() == y[:1].tobytes()


@pytest.mark.parametrize("name", ["silu_mul", "gelu_mul"])
def test_gated_mul(name: str) -> None:
    rng = np.random.default_rng(0)
    gate, up = (3 * rng.standard_normal((2, 300), np.float32) for _ in range(2))
    gate[0, :4] = [1e30, 90, -90, 0]
    op = get_op(name)
    lowered = GpuLowered(op, [tensor(gate, dynamic=2), tensor(up, dynamic=2)], {})
    (y,) = lowered(machine(), [gate, up])
    np.testing.assert_allclose(y, op.reference(gate, up), rtol=3e-6, atol=1e-6)


@dataclass
class Matmul:
    """A packed_matmul of random numbers: its operands and attributes."""

    name: str
    rows: int
    cols: int
    activations: str
    gated: str = ""
    norm: bool = False
    bias: bool = False
    residual: bool = False
    op: str = "packed_matmul"

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(abs(hash((self.rows, self.cols))) % 1000)
        matrix_rows = self.rows * (2 if self.gated else 1)
        self.weight = random_packed(self.name, matrix_rows, self.cols, self.rng)
        self.norm_weight = self._numbers(self.norm, self.cols)
        self.bias_numbers = self._numbers(self.bias, self.rows)
        attrs: dict[str, Any] = {
            "format": self.name, "activations": self.activations, "rows": self.rows, "eps": 1e-5,
        }  # fmt: skip
        if self.op == "packed_matmul":
            attrs["gated"] = self.gated
        self.attrs = attrs
        x, residual = self.inputs(1)
        types = [tensor(x, dynamic=1), tensor(self.weight), *map(tensor, self._optional)]
        if self.op == "packed_matmul":
            types.append(tensor(residual, dynamic=1))
        self.lowered = GpuLowered(get_op(self.op), types, attrs)

    def _numbers(self, wanted: bool, count: int) -> Array | None:
        return self.rng.standard_normal(count, np.float32) if wanted else None

    @property
    def _optional(self) -> list[Array | None]:
        return [self.norm_weight, self.bias_numbers]

    def inputs(self, tokens: int) -> tuple[Array, Array | None]:
        rng = np.random.default_rng(5)  # the first rows are the same for any number
        x = rng.standard_normal((200, self.cols), np.float32)[:tokens].copy()
        residual = rng.standard_normal((200, self.rows), np.float32)[:tokens].copy()
        return x, residual if self.residual else None

    def operands(self, tokens: int) -> list[Array | None]:
        x, residual = self.inputs(tokens)
        operands = [x, self.weight, *self._optional]
        return [*operands, residual] if self.op == "packed_matmul" else operands

    def run(self, tokens: int, on: EmulatedGpu | None = None) -> Array:
        return self.lowered(on or machine(), self.operands(tokens))[0]

    def reference(self, tokens: int) -> Array:
        y = get_op(self.op).reference(*self.operands(tokens), **self.attrs)
        assert isinstance(y, np.ndarray)
        return y


def random_packed(name: str, rows: int, cols: int, rng: np.random.Generator) -> Array:
    """Random bytes whose scales and minima are sound numbers."""
    form = packed.FORMATS[name]
    tiles, sections = -(-rows // 16), form.num_sections(cols)
    if form.is_float:
        bits = to_bf16(rng.standard_normal(tiles * 16 * cols).astype(np.float32))
        return bits.view(np.int8)
    raw = rng.integers(0, 256, (tiles, sections, form.section_bytes(cols)), dtype=np.uint8)
    at = 0
    for part in form.header:
        numbers = rng.uniform(-0.1, 0.1, (tiles, sections, 16 * part.count)).astype(part.dtype)
        raw[:, :, at : at + part.num_bytes] = numbers.view(np.uint8)
        at += part.num_bytes
    return raw.reshape(-1).view(np.int8)


# Of the largest.  A norm's last bit may take an activation to the other one of two bf16 numbers.
TOLERANCE = {"bf16": 5e-4, "f32": 1e-5}


def check_matmul(matmul: Matmul, tokens: int) -> Array:
    y, expected = matmul.run(tokens), matmul.reference(tokens)
    scale = np.abs(expected).max()
    assert np.abs(y - expected).max() <= TOLERANCE[matmul.activations] * scale
    return y


@pytest.mark.parametrize("activations", PIECES)
@pytest.mark.parametrize("name", ["q4_1", "bf16"])
def test_matmul(name: str, activations: str) -> None:
    few = Matmul(name, 40, 320, activations, norm=True, bias=True, residual=True)
    y = check_matmul(few, 9)  # the kernel for some tokens
    assert few.run(3).tobytes() == y[:3].tobytes()  # for a few


@pytest.mark.targets
@pytest.mark.parametrize(
    ("name", "activations"),
    [*((name, "bf16") for name in FORMATS), ("q4_1", "f32"), ("q8_0", "f32"), ("bf16", "f32")],
)
def test_matmul_of_every_format(name: str, activations: str) -> None:
    """The three kernels of each format give a row the same bits; odd tiles, gates, no extras."""
    matmul = Matmul(name, 144 + 16, 384, activations, norm=True, residual=True)
    y = check_matmul(matmul, 70)
    for tokens in (1, 8, 33):
        assert matmul.run(tokens).tobytes() == y[:tokens].tobytes(), tokens
    gated = Matmul(name, 80, 256, activations, gated="silu")
    y = check_matmul(gated, 65)
    for tokens in (2, 20):
        assert gated.run(tokens).tobytes() == y[:tokens].tobytes(), tokens
    plain = Matmul(name, 24, 128, activations, bias=True)
    assert check_matmul(plain, 1).tobytes() == plain.run(66)[:1].tobytes()


def test_gelu_is_a_gate() -> None:
    check_matmul(Matmul("q4_1", 16, 64, "bf16", gated="gelu_tanh"), 2)


def test_argmax() -> None:
    matmul = Matmul("q4_1", 70, 64, "f32", op="packed_argmax")
    np.testing.assert_array_equal(matmul.run(5), matmul.reference(5))
    x = np.zeros((5, 700), np.float32)
    x[0, [3, 600]] = 1  # the first of equals
    x[1] = -np.inf
    x[2, 5], x[3, 699], x[4, :] = np.nan, np.inf, -1
    ids = np.zeros(5, np.int32)
    gpu.call("rows", "llmir_argmax", (5, 1, 1), 256, [x.ctypes.data, ids.ctypes.data, 700])
    np.testing.assert_array_equal(ids, get_op("argmax").reference(x))
    np.testing.assert_array_equal(ids, [3, -1, -1, -1, 0])


@pytest.mark.parametrize("name", ["q4_1", "bf16"])
def test_embedding(name: str) -> None:
    check_embedding(name)


@pytest.mark.targets
@pytest.mark.parametrize("name", [f for f in FORMATS if f not in ("q4_1", "bf16")])
def test_embedding_of_every_format(name: str) -> None:
    check_embedding(name)


def check_embedding(name: str) -> None:
    table = random_packed(name, 40, 256, np.random.default_rng(1))
    ids = np.array([39, 0, 17], np.int32)
    attrs: dict[str, Any] = {"format": name, "rows": 40, "cols": 256}
    op = get_op("packed_embedding")
    (y,) = GpuLowered(op, [DYNAMIC, tensor(table)], attrs)(machine(), [ids, table])
    np.testing.assert_array_equal(y, op.reference(ids, table, **attrs))


@pytest.mark.parametrize("norms", [False, True])
def test_rope_append(norms: bool) -> None:
    rng = np.random.default_rng(3)
    heads, q_heads, dim, page_size, tokens = 2, 3, 64, 8, 5
    qkv = rng.standard_normal((tokens, (q_heads + 2 * heads) * dim), np.float32)
    positions = np.array([0, 7, 8, 30, 2], np.int32)
    slots = np.array([9, 25, 8, 39, 16], np.int32)
    angles = rng.uniform(0, 6, (32, dim // 2))
    table = np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    kv = rng.integers(0, 1 << 14, (5, 2, heads, page_size, dim), dtype=np.uint16)
    extra = [rng.standard_normal(dim, np.float32) if norms else None for _ in range(2)]
    op = get_op("rope_append")
    kv_type = TensorType((None, *kv.shape[1:]), "bf16")
    types = [tensor(qkv, dynamic=1), DYNAMIC, tensor(table), DYNAMIC, kv_type, *map(tensor, extra)]
    lowered = GpuLowered(op, types, {"eps": 1e-6})
    y, pages = lowered(machine(), [qkv, positions, table, slots, kv, *extra])
    wanted_y, wanted = op.reference(qkv, positions, table, slots, from_bf16(kv), *extra, eps=1e-6)
    np.testing.assert_allclose(y, wanted_y, rtol=2e-6, atol=2e-6)
    assert (pages == kv).sum() >= kv.size - tokens * 2 * heads * dim
    np.testing.assert_allclose(from_bf16(pages), wanted, rtol=2**-7)


def test_append_kv() -> None:
    rng = np.random.default_rng(4)
    k, v = (rng.standard_normal((3, 2, 24), np.float32) for _ in range(2))
    k[0, 0, :3] = [np.nan, np.inf, 1 + 2**-8]  # a tie
    slots = np.array([8, 3, 15], np.int32)
    kv = np.zeros((2, 2, 2, 8, 24), np.uint16)
    op = get_op("append_kv")
    types = [TensorType((None, *kv.shape[1:]), "bf16"), *[tensor(k, dynamic=1)] * 2, DYNAMIC]
    (pages,) = GpuLowered(op, types, {})(machine(), [kv, k, v, slots])
    wanted = op.reference(from_bf16(kv), k, v, slots)
    np.testing.assert_array_equal(from_bf16(pages), from_bf16(to_bf16(wanted)))


@dataclass
class Attend:
    heads: Heads
    window: int = 0

    def run(self, cache: Cache, parts: list[tuple[int, int, int]]) -> tuple[Array, Array]:
        """(result, reference) of the tokens of some sequences."""
        batch = cache.batch(parts, spare_columns=1, window=self.window)
        op, scale = get_op("paged_attention"), self.heads.dim**-0.5
        kv = to_bf16(batch.kv)
        operands = [batch.q, kv, *batch.operands[2:], None]
        types = [
            TensorType((None, *batch.q.shape[1:]), "f32"),
            TensorType((None, *kv.shape[1:]), "bf16"),
            TensorType((None, None), "i32"),
            *[DYNAMIC] * 4,
            None,
        ]
        attrs = {"scale": scale, "window": self.window}
        lowered = GpuLowered(op, types, attrs)
        (y,) = lowered(machine(), operands)
        wanted = op.reference(
            batch.q, from_bf16(kv), *batch.operands[2:], None, **attrs, softcap=0.0
        )
        np.testing.assert_allclose(y, wanted, rtol=2e-4, atol=2e-5)
        return y, wanted


def test_attention() -> None:
    """Few tokens, split over the context; NaN in all pages that nobody may read."""
    heads = Heads(q=6, kv=2, dim=64)
    cache = Cache([300, 40, 3], heads)
    Attend(heads).run(cache, [(0, 298, 300), (1, 39, 40), (2, 0, 3)])


def test_attention_of_many_tokens() -> None:
    """The other kernel gives the same bits; its tiles have tokens of several sequences."""
    heads = Heads(q=6, kv=2, dim=64, page_size=8)
    cache = Cache([150, 20], heads)
    attend = Attend(heads)
    whole, _ = attend.run(cache, [(0, 129, 150), (1, 3, 20)])
    alone, _ = attend.run(cache, [(0, 147, 150), (1, 3, 5)])
    assert alone.tobytes() == whole[[18, 19, 20, 21, 22]].tobytes()


@pytest.mark.targets
@pytest.mark.parametrize("window", [0, 50])
@pytest.mark.parametrize(("q", "kv", "dim"), [(8, 2, 128), (9, 3, 64), (2, 2, 64), (16, 1, 128)])
def test_attention_of_every_shape(q: int, kv: int, dim: int, window: int) -> None:
    heads = Heads(q=q, kv=kv, dim=dim)
    cache = Cache([290, 64, 1], heads)
    attend = Attend(heads, window)
    whole, _ = attend.run(cache, [(0, 250, 290), (1, 60, 64), (2, 0, 1)])
    alone, _ = attend.run(cache, [(0, 287, 290), (2, 0, 1)])
    assert alone.tobytes() == whole[[37, 38, 39, 44]].tobytes()
