"""The decoder-only transformer that Llama, Mistral, Qwen2 and Qwen3 share.

Shape legend: T tokens, S sequences, P page-table columns, G groups of layers
that share a page table, L rows whose logits are wanted, D hidden, H heads, hd
head dim, V vocabulary.

`forward` is the step of the design: one ragged batch, prefill, decode or any
mixture.  Each layer's KV pages are an argument of their own that append_kv
"returns" changed; they are not outputs of the step, and the compiler makes
the change happen in place.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from llmir.config import ModelSpec
from llmir.models.layers import Matrix, MatrixForm, RmsNorm, gate_of, parameter

ops = torch.ops.llm
FormOf = Callable[[str], MatrixForm]


def kv_groups(spec: ModelSpec) -> list[int | None]:
    """The distinct sliding windows of the layers (None: full), in order of appearance."""
    windows = spec.sliding_windows or (None,) * spec.num_layers
    return list(dict.fromkeys(windows))


def group_of_layer(spec: ModelSpec, layer: int) -> int:
    """Which group (page table, pool) a layer belongs to."""
    window = spec.sliding_windows[layer] if spec.sliding_windows else None
    return kv_groups(spec).index(window)


class Batch:
    """The step's index tensors, with page tables and slots split by group."""

    def __init__(
        self,
        positions_T: Tensor,
        token_seq_T: Tensor,
        query_start: Tensor,
        context_len_S: Tensor,
        page_table_GSP: Tensor,
        slots_GT: Tensor,
    ) -> None:
        self.positions = positions_T
        self.token_seq = token_seq_T
        self.query_start = query_start
        self.context_len = context_len_S
        num_groups = page_table_GSP.shape[0]
        self.page_tables = [page_table_GSP[g] for g in range(num_groups)]
        self.slots = [slots_GT[g] for g in range(num_groups)]


class Attention(nn.Module):
    """Grouped-query attention over the paged KV cache (Ainslie et al., 2023)."""

    def __init__(self, spec: ModelSpec, layer: int, form_of: FormOf) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = spec.num_heads, spec.num_kv_heads
        self.head_dim = spec.head_dim
        self.group = group_of_layer(spec, layer)
        self.window = kv_groups(spec)[self.group] or 0
        self.scale = 1.0 / math.sqrt(spec.head_dim)
        prefix = f"model.layers.{layer}.self_attn"

        def matrix(name: str, rows: int, cols: int, bias: bool) -> Matrix:
            return Matrix(rows, cols, form_of(f"{prefix}.{name}.weight"), bias)

        q_size, kv_size = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        self.q_proj = matrix("q_proj", q_size, spec.hidden_size, spec.qkv_bias)
        self.k_proj = matrix("k_proj", kv_size, spec.hidden_size, spec.qkv_bias)
        self.v_proj = matrix("v_proj", kv_size, spec.hidden_size, spec.qkv_bias)
        self.o_proj = matrix("o_proj", spec.hidden_size, q_size, spec.output_bias)
        self.q_norm = RmsNorm(self.head_dim, spec.rms_norm_eps) if spec.qk_norm else None
        self.k_norm = RmsNorm(self.head_dim, spec.rms_norm_eps) if spec.qk_norm else None

    def _heads(self, x_TN: Tensor, num_heads: int, norm: RmsNorm | None) -> Tensor:
        if norm is not None:
            x_TN = norm(x_TN.reshape(-1, self.head_dim))
        return x_TN.reshape(-1, num_heads, self.head_dim)

    def forward(self, x_TD: Tensor, batch: Batch, rope_table: Tensor, kv: Tensor) -> Tensor:
        q = self._heads(self.q_proj(x_TD), self.num_heads, self.q_norm)
        k = self._heads(self.k_proj(x_TD), self.num_kv_heads, self.k_norm)
        v = self._heads(self.v_proj(x_TD), self.num_kv_heads, None)
        q = ops.rope(q, batch.positions, rope_table)
        k = ops.rope(k, batch.positions, rope_table)
        kv = ops.append_kv(kv, k, v, batch.slots[self.group])
        out_THd = ops.paged_attention(
            q,
            kv,
            batch.page_tables[self.group],
            batch.token_seq,
            batch.positions,
            batch.query_start,
            batch.context_len,
            self.scale,
            self.window,
        )
        return self.o_proj(out_THd.reshape(-1, self.num_heads * self.head_dim))


class Mlp(nn.Module):
    """SwiGLU or GEGLU feed-forward (Shazeer, 2020)."""

    def __init__(self, spec: ModelSpec, layer: int, form_of: FormOf) -> None:
        super().__init__()
        prefix = f"model.layers.{layer}.mlp"
        hidden, inner, bias = spec.hidden_size, spec.intermediate_size, spec.mlp_bias
        self.gate = gate_of(spec.hidden_act)
        self.gate_proj = Matrix(inner, hidden, form_of(f"{prefix}.gate_proj.weight"), bias)
        self.up_proj = Matrix(inner, hidden, form_of(f"{prefix}.up_proj.weight"), bias)
        self.down_proj = Matrix(hidden, inner, form_of(f"{prefix}.down_proj.weight"), bias)

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.down_proj(self.gate(self.gate_proj(x_TD), self.up_proj(x_TD)))


class DecoderLayer(nn.Module):
    """Pre-norm attention and feed-forward, each added to its input."""

    def __init__(self, spec: ModelSpec, layer: int, form_of: FormOf) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(spec.hidden_size, spec.rms_norm_eps)
        self.self_attn = Attention(spec, layer, form_of)
        self.post_attention_layernorm = RmsNorm(spec.hidden_size, spec.rms_norm_eps)
        self.mlp = Mlp(spec, layer, form_of)

    def forward(self, x_TD: Tensor, batch: Batch, rope_table: Tensor, kv: Tensor) -> Tensor:
        x_TD = ops.add(x_TD, self.self_attn(self.input_layernorm(x_TD), batch, rope_table, kv))
        return ops.add(x_TD, self.mlp(self.post_attention_layernorm(x_TD)))


class DecoderBody(nn.Module):
    """Embedding, layers and final norm: everything but the head."""

    def __init__(self, spec: ModelSpec, form_of: FormOf) -> None:
        super().__init__()
        self.embed_tokens = Matrix(
            spec.vocab_size, spec.hidden_size, form_of("model.embed_tokens.weight")
        )
        self.layers = nn.ModuleList(DecoderLayer(spec, i, form_of) for i in range(spec.num_layers))
        self.norm = RmsNorm(spec.hidden_size, spec.rms_norm_eps)


class DecoderLM(nn.Module):
    """A causal language model as one step over a ragged batch.

    form_of:   canonical matrix name → how the artifact stores it
    max_len:   positions in the RoPE table
    """

    def __init__(self, spec: ModelSpec, form_of: FormOf, max_len: int) -> None:
        super().__init__()
        self.model = DecoderBody(spec, form_of)
        self.lm_head = (
            None
            if spec.tie_word_embeddings
            else Matrix(spec.vocab_size, spec.hidden_size, form_of("lm_head.weight"))
        )
        self.rope_table = parameter((max_len, spec.head_dim))

    def forward(
        self,
        token_ids: Tensor,  # i32 [T]
        positions: Tensor,  # i32 [T]
        token_seq: Tensor,  # i32 [T]
        query_start: Tensor,  # i32 [S+1]
        context_len: Tensor,  # i32 [S]
        page_table: Tensor,  # i32 [G, S, P]
        slots: Tensor,  # i32 [G, T]
        logit_rows: Tensor,  # i32 [L]
        kv: list[Tensor],  # one [N_g, 2, Hkv, page_size, hd] per layer
    ) -> Tensor:
        """→ logits f32 [L, V]; writes this step's K and V into `kv`."""
        batch = Batch(positions, token_seq, query_start, context_len, page_table, slots)
        x_TD = self.model.embed_tokens.rows(token_ids)
        for layer, layer_kv in zip(self.model.layers, kv, strict=True):
            x_TD = layer(x_TD, batch, self.rope_table, layer_kv)
        x_LD = self.model.norm(ops.embedding(logit_rows, x_TD))
        head = self.model.embed_tokens if self.lm_head is None else self.lm_head
        return head(x_LD)
