"""llm.rope_append: the heads of a token turned by RoPE, its keys and values put in their page.

    q', k' = rope(norm(head));  v' = v        norm: RMSNorm over the head, where there is one
    y = q';   kv' = append_kv(kv, k', v', slots)

Shape legend: T tokens, Hq query heads, H KV heads, D head dim, C positions in the table,
N pages, ps tokens a page; X = (Hq + 2 H) D, a token's heads of q, k and v; _D as in append_kv.

The pass fuse-rope-append makes it of llm.rope and llm.append_kv (and llm.rms_norm).
"""

from __future__ import annotations

import numpy as np

from llmir.dialect_ext.append_kv import AppendKv
from llmir.dialect_ext.base import Array, Attribute, Call, Lowering, Op, Operand
from llmir.dialect_ext.c_kernels import CKernel, Count, Id, Plan, kernel_lowering, shares
from llmir.dialect_ext.c_pages import PAGES, pages_supports
from llmir.dialect_ext.gpu_pages import rope_append_lowerings
from llmir.dialect_ext.kv_formats import KV_OPERAND, check_kv, kv_pages
from llmir.dialect_ext.rope import Rope
from llmir.dialect_ext.types import TensorType, is_static

_HAS_Q_NORM, _HAS_K_NORM = 1, 2
_TOKENS_OF_WORKGROUP = 16


class RopeAppend(Op):
    """qkv f32[T, X], positions i32[T], table f32[C, D], slots i32[T], kv[N, 2, H, ps, _D],
    q_norm f32[D]?, k_norm f32[D]? → f32[T, Hq, D], kv.
    """

    name = "rope_append"
    pure = False
    from_torch = False
    num_results = 2
    operands = (
        Operand(name="qkv", dims=("T", "X"), dtypes=("f32",)),
        Operand(name="positions", dims=("T",), dtypes=("i32",)),
        Operand(name="table", dims=("C", "D"), dtypes=("f32",)),
        Operand(name="slots", dims=("T",), dtypes=("i32",)),
        KV_OPERAND,
        Operand(name="q_norm", dims=("D",), dtypes=("f32",), optional=True),
        Operand(name="k_norm", dims=("D",), dtypes=("f32",), optional=True),
    )
    attributes = (Attribute(name="eps", kind=float, default=0.0),)

    def check(self, call: Call) -> None:
        check_kv(call)
        qkv, pages = call.type_of("qkv"), kv_pages(call)
        self.expect(is_static(qkv.shape[1]), f"X of qkv must be static, got {qkv}")
        heads, rest = divmod(qkv.shape[1], pages.dim)
        self.expect(
            rest == 0 and heads > 2 * pages.heads,
            f"a row of qkv must be (Hq + 2 H) heads of {pages.dim} with H = {pages.heads}, "
            f"got {qkv}",
        )

    def result_types(self, call: Call) -> tuple[TensorType, ...]:
        qkv, kv, pages = call.type_of("qkv"), call.type_of("kv"), kv_pages(call)
        q_heads = qkv.shape[1] // pages.dim - 2 * pages.heads
        return (TensorType((qkv.shape[0], q_heads, pages.dim), "f32"), kv)

    def reference(
        self,
        qkv: Array,
        positions: Array,
        table: Array,
        slots: Array,
        kv: Array,
        q_norm: Array | None,
        k_norm: Array | None,
        *,
        eps: float,
    ) -> tuple[Array, Array]:
        kv_heads, dim = kv.shape[2], table.shape[1]
        heads = qkv.reshape(len(qkv), qkv.shape[1] // dim, dim)
        q, k, v = np.split(heads, [heads.shape[1] - 2 * kv_heads, heads.shape[1] - kv_heads], 1)

        def normed(x: Array, weight: Array | None) -> Array:
            if weight is None:
                return x
            mean = np.mean(x.astype(np.float64) ** 2, axis=-1, keepdims=True)
            return (x / np.sqrt(mean + eps) * weight).astype(np.float32)

        q, k = (
            Rope().reference(normed(x, w), positions, table) for x, w in ((q, q_norm), (k, k_norm))
        )
        return q, AppendKv().reference(kv, k, v, slots)

    @property
    def lowerings(self) -> tuple[Lowering, ...]:
        return (kernel_lowering(_plan, pages_supports, PAGES), *rope_append_lowerings())


def _plan(call: Call) -> Plan:
    """See plugins/cpu/rows.c."""
    kv, pages = call.type_of("kv"), kv_pages(call)
    heads, page_size, dim = pages.heads, pages.page_size, pages.dim
    q_heads = call.results[0].shape[1]
    index = TensorType((None,), "i32")
    norms = {n: t for n, t in call.present if n in ("q_norm", "k_norm")}
    kernel = CKernel(
        function=f"llmir_rope_append_{pages.format}",
        reads=("qkv", "positions", "table", "slots", "kv", *norms),
        writes=("y",),
        tied="kv",
        arguments=(
            "qkv",
            "q_norm" if "q_norm" in norms else "qkv",
            "k_norm" if "k_norm" in norms else "qkv",
            "positions",
            "table",
            "slots",
            "kv",
            "y",
            "T",
            q_heads,
            heads,
            page_size,
            dim,
            _HAS_Q_NORM * ("q_norm" in norms) + _HAS_K_NORM * ("k_norm" in norms),
            float(call.attrs["eps"]),
            Id(0),
            Count(0),
        ),
        grid=("shares",),
    )
    return Plan(
        tensors={
            "qkv": TensorType((None, call.type_of("qkv").shape[1]), "f32"),
            "positions": index,
            "table": call.type_of("table"),
            "slots": index,
            "kv": TensorType((None, *kv.shape[1:]), kv.dtype),
            **norms,
            "y": TensorType((None, q_heads, dim), "f32"),
        },
        dims={**dict.fromkeys(("qkv", "positions", "slots", "y"), ("T",)), "kv": ("N",)},
        sizes={"T": ("qkv", 0), "N": ("kv", 0)},
        shapes=shares("T", _TOKENS_OF_WORKGROUP),
        kernels=(kernel,),
        results=("y", "kv"),
    )
