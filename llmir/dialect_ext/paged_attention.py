"""llm.paged_attention: causal attention of a ragged batch over a paged KV cache.

    s[t, h, j] = cap(scale * q[t, h, :] · K(token_seq[t], j, h / G))
    y[t, h, :] = Σ_j e^s[t, h, j] V(token_seq[t], j, h / G) / (Σ_j e^s[t, h, j] + e^sinks[h])
    over the positions   max(0, positions[t] - window + 1) <= j <= positions[t]

    K(s, j, g) = kv[page_table[s, j / ps], 0, g, j % ps, :];  V: index 1

Shape legend: T tokens, S sequences, P page-table columns, N pages of the pool,
Hq query heads, H KV heads, G = Hq / H, ps tokens a page, D head dim; _D: D, or
D + 4 of int8 (kv_formats.py), where K and V are what the rows read as.
cap(s) = softcap tanh(s / softcap), or s where softcap is 0 (Gemma 2).  e^sinks[h] is 0 where there
are no sinks, learned logits of no position (Xiao et al., 2023; gpt-oss).
`window` 0 means no window.  The softmax is in float32 whatever kv's dtype.

What holds for every lowering: a row's result depends on its own positions only,
bit for bit, whatever T, S, P and the other rows are; nothing outside a row's
positions is read into its arithmetic (freed pages and unwritten slots may hold
NaN); no transient grows with N.
"""

from __future__ import annotations

import numpy as np

from llmir.dialect_ext.append_kv import not_f16_on_vulkan
from llmir.dialect_ext.base import (
    Array,
    Attribute,
    Call,
    Lowering,
    Op,
    Operand,
)
from llmir.dialect_ext.c_pages import attention_lowering
from llmir.dialect_ext.gpu_pages import attention_lowerings
from llmir.dialect_ext.kv_formats import KV_OPERAND, check_kv, read
from llmir.dialect_ext.paged_attention_loops import emit_loops
from llmir.dialect_ext.paged_attention_vectors import emit_vectors
from llmir.dialect_ext.spirv_attention import attention_lowering as spirv_lowering
from llmir.dialect_ext.types import TensorType, is_static
from llmir.dialect_ext.workgroups import cpu_only

PAGE_SIZES = (8, 16, 32)


class PagedAttention(Op):
    """q f32[T, Hq, D], kv f32|f16|bf16|i8[N, 2, H, ps, _D], … → f32[T, Hq, D].

    page_table i32[S, P], token_seq i32[T], positions i32[T], query_start i32[S+1],
    context_len i32[S]: as llmir.runtime.base.StepBatch has them, for one group.
    sinks f32[Hq]?
    """

    name = "paged_attention"
    operands = (
        Operand(name="q", dims=("T", "Hq", "D"), dtypes=("f32",)),
        KV_OPERAND,
        Operand(name="page_table", dims=("S", "P"), dtypes=("i32",)),
        Operand(name="token_seq", dims=("T",), dtypes=("i32",)),
        Operand(name="positions", dims=("T",), dtypes=("i32",)),
        Operand(name="query_start", dims=("S+1",), dtypes=("i32",)),
        Operand(name="context_len", dims=("S",), dtypes=("i32",)),
        Operand(name="sinks", dims=("Hq",), dtypes=("f32",), optional=True, by_name=True),
    )
    attributes = (
        Attribute(name="scale", kind=float),
        Attribute(name="window", kind=int),
        Attribute(name="softcap", kind=float, default=0.0, by_name=True),
    )

    def check(self, call: Call) -> None:
        q = call.type_of("q")
        kv = call.type_of("kv")
        self.expect(all(map(is_static, q.shape[1:])), f"Hq and D of q must be static, got {q}")
        check_kv(call)
        self.expect(
            q.shape[1] % kv.shape[2] == 0,
            f"Hq = {q.shape[1]} of q must be a multiple of H = {kv.shape[2]} of kv",
        )
        self.expect(
            kv.shape[3] in PAGE_SIZES,
            f"the page size must be {', '.join(map(str, PAGE_SIZES))}; got {kv.shape[3]} in {kv}",
        )
        window, scale = int(call.attrs["window"]), float(call.attrs["scale"])
        self.expect(window >= 0, f"window must be >= 0, got {window}")
        self.expect(bool(np.isfinite(scale)), f"scale must be finite, got {scale}")
        softcap = float(call.attrs["softcap"])
        self.expect(0 <= softcap < np.inf, f"softcap must be >= 0 and finite, got {softcap}")

    def result_types(self, call: Call) -> tuple[TensorType, ...]:
        q = call.type_of("q")
        return (q,)

    def reference(
        self,
        q: Array,
        kv: Array,
        page_table: Array,
        token_seq: Array,
        positions: Array,
        query_start: Array,
        context_len: Array,
        sinks: Array | None = None,
        *,
        scale: float,
        window: int,
        softcap: float = 0.0,
    ) -> Array:
        group, page_size = q.shape[1] // kv.shape[2], kv.shape[3]
        y = np.zeros_like(q)
        for t, (sequence, last) in enumerate(zip(token_seq, positions, strict=True)):
            first = max(0, last - window + 1) if window else 0
            j = np.arange(first, last + 1)
            pages = page_table[sequence, j // page_size]
            k, v = (
                read(kv[pages, x, :, j % page_size], q.shape[2]).astype(np.float64) for x in (0, 1)
            )  # [J, H, D]
            for h in range(q.shape[1]):
                scores = scale * (k[:, h // group] @ q[t, h].astype(np.float64))
                if softcap:
                    scores = softcap * np.tanh(scores / softcap)
                sink = -np.inf if sinks is None else float(sinks[h])
                largest = max(scores.max(), sink)
                weights = np.exp(scores - largest)
                total = weights.sum() + np.exp(sink - largest)
                y[t, h] = weights @ v[:, h // group] / total
        return y

    @property
    def lowerings(self) -> tuple[Lowering, ...]:
        return (
            attention_lowering(),
            spirv_lowering(),
            *attention_lowerings(),
            Lowering(provider="portable", variant="vectors", supports=cpu_only, emit=emit_vectors),
            Lowering(
                provider="portable", variant="loops", supports=not_f16_on_vulkan, emit=emit_loops
            ),
        )
