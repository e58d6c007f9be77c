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
from llmir.dialect_ext.c_kernels import PROVIDER, CKernel, Count, Id, flags, workgroups
from llmir.dialect_ext.c_pages import PAGES, pages_supports
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
        return (
            Lowering(
                provider=PROVIDER, supports=pages_supports, emit=_emit, flags=flags, pages=PAGES
            ),
        )


def _emit(call: Call, symbol: str) -> str:
    """See plugins/cpu/rows.c."""
    qkv, kv, table = (call.type_of(n) for n in ("qkv", "kv", "table"))
    y_static = call.results[0]
    pages = kv_pages(call)
    heads, page_size, dim = pages.heads, pages.page_size, pages.dim
    q_heads = y_static.shape[1]
    any_qkv = TensorType((None, qkv.shape[1]), "f32")
    any_kv = TensorType((None, *kv.shape[1:]), kv.dtype)
    y = TensorType((None, q_heads, dim), "f32")
    index = TensorType((None,), "i32")
    has_q, has_k = (call.operand(n) is not None for n in ("q_norm", "k_norm"))
    types = {
        "qkv": any_qkv,
        "positions": index,
        "table": table,
        "slots": index,
        "kv": any_kv,
        **{n: call.type_of(n) for n, there in (("q_norm", has_q), ("k_norm", has_k)) if there},
    }
    grid = f"""    %share_tokens = arith.constant {_TOKENS_OF_WORKGROUP} : index
    %shares = arith.ceildivui %T, %share_tokens : index
"""
    kernel = CKernel(
        symbol=symbol,
        function=f"llmir_rope_append_{pages.format}",
        reads=tuple(types.items()),
        writes=(("y", y),),
        tied="kv",
        sizes=("T",),
        arguments=(
            "qkv",
            "q_norm" if has_q else "qkv",
            "k_norm" if has_k else "qkv",
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
            _HAS_Q_NORM * has_q + _HAS_K_NORM * has_k,
            float(call.attrs["eps"]),
            Id(0),
            Count(0),
        ),
        grid=grid + workgroups("%shares"),
    )
    operands = {name: f"%{name}" for name in types}
    casts = []
    for name in ("qkv", "positions", "slots", "kv"):
        casts.append(f"  %{name}_any = tensor.cast %{name} : {call.type_of(name)} to {types[name]}")
        operands[name] = f"%{name}_any"
    tokens = {name: ["%T"] for name in ("qkv", "positions", "slots", "y")}
    dispatch = kernel.dispatch(
        operands, {**tokens, "kv": ["%N"]}, {"y": "%y_any", "kv": "%kv_written"}
    )
    casted = "\n".join(casts)
    return f"""{kernel.executable()}
{call.signature(symbol)} {{
{casted}
  %zero = arith.constant 0 : index
  %T = tensor.dim %qkv_any, %zero : {any_qkv}
  %N = tensor.dim %kv_any, %zero : {any_kv}
  {dispatch}
  %y = tensor.cast %y_any : {y} to {y_static}
  %kv_out = tensor.cast %kv_written : {any_kv} to {kv}
  return %y, %kv_out : {y_static}, {kv}
}}
"""
