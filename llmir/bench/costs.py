"""What a step cannot avoid: bytes through memory and floating-point operations.

Symbols: T tokens of the step, L rows of logits, c_s tokens of sequence s in the cache
after it, n_s tokens of it in this step, w a layer's window (none: infinite).

    bytes/step = weights + Σ_layers Σ_s [min(c_s, n_s + w − 1) + n_s] · kv
        weights  every parameter of the module's weights file once, in the bytes that it has
                 there; of the RoPE table, and of an embedding table that is not the head as
                 well, nothing, as only T of their rows are looked up
        kv       2 · num_kv_heads · bytes per row (head_dim elements; int8: and a scale): K and V
                 of one token in one layer; read for the positions that the step's tokens see,
                 written for its own

    flops/step = 2 · matrices · T + 2 · V · hidden · L
               + Σ_layers Σ_tokens 4 · num_heads · head_dim · min(position + 1, w)
        matrices elements of all weight matrices but the embedding and the head

Per token is per step over T.  Activations, norms, RoPE, logits and what a kernel reads
twice are not counted: these are floors, and a share of a limit that is computed from them
is of the useful work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmir.artifact import Manifest, ModuleEntry

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True, slots=True)
class Span:
    """Positions start … end - 1 of one sequence, computed in one step."""

    start: int
    end: int

    @property
    def length(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCosts:
    """The constants of the formulas above, for one artifact.

    weight_bytes          read in every step
    stored_weight_bytes   of the module's weights file, the tables too
    kv_token_bytes        K and V of one token in one layer
    page_size             tokens
    matrix_elements       per token
    head_elements         per row of logits
    attention_flops       per layer, token and position seen
    group_windows         sliding window of each group of layers
    group_of_layer        index of each layer's group
    """

    weight_bytes: int
    stored_weight_bytes: int
    kv_token_bytes: int
    page_size: int
    matrix_elements: int
    head_elements: int
    attention_flops: int
    group_windows: tuple[int | None, ...]
    group_of_layer: tuple[int, ...]

    @classmethod
    def of(cls, manifest: Manifest, module: ModuleEntry) -> StepCosts:
        """The costs of a module's steps.  Raises as Manifest.parameters_of."""
        spec, kv = manifest.model, manifest.kv
        parameters = manifest.parameters_of(module)
        looked_up = [()] if spec.tie_word_embeddings else [(), (EMBEDDING,)]  # (): the RoPE table
        return cls(
            weight_bytes=sum(p.num_bytes for p in parameters if p.sources not in looked_up),
            stored_weight_bytes=sum(p.num_bytes for p in parameters),
            kv_token_bytes=kv.token_bytes,
            page_size=kv.page_size,
            matrix_elements=sum(
                t.shape[0] * t.shape[1]
                for t in manifest.tensors
                if len(t.shape) == 2 and t.name not in (EMBEDDING, HEAD)
            ),
            head_elements=spec.vocab_size * spec.hidden_size,
            attention_flops=4 * spec.num_heads * spec.head_dim,
            group_windows=kv.group_windows,
            group_of_layer=kv.group_of_layer,
        )

    @property
    def windows(self) -> list[int | None]:
        """Of each layer."""
        return [self.group_windows[group] for group in self.group_of_layer]

    @property
    def page_bytes(self) -> int:
        """One page of one layer."""
        return self.page_size * self.kv_token_bytes

    def step_bytes(self, spans: Sequence[Span]) -> int:
        """Bytes that a step of these spans reads and writes."""
        positions = sum(positions_read(s, w) + s.length for s in spans for w in self.windows)
        return self.weight_bytes + positions * self.kv_token_bytes

    def step_flops(self, spans: Sequence[Span], logit_rows: int) -> int:
        """Floating-point operations of a step of these spans."""
        tokens = sum(s.length for s in spans)
        seen = sum(positions_seen(s, w) for s in spans for w in self.windows)
        dense = 2 * self.matrix_elements * tokens + 2 * self.head_elements * logit_rows
        return dense + self.attention_flops * seen

    def pool_bytes(self, num_pages: Sequence[int]) -> int:
        """Bytes of the KV pools with so many pages per group."""
        return self.page_bytes * sum(num_pages[group] for group in self.group_of_layer)

    def kv_bytes(self, num_seqs: int, num_tokens: int) -> int:
        """Bytes of the pools that hold `num_seqs` sequences of `num_tokens`, windows or not.

        Page 0, which is never handed out, is counted.
        """
        pages = 1 + num_seqs * -(-num_tokens // self.page_size)
        return self.pool_bytes([pages] * len(self.group_windows))


def positions_read(span: Span, window: int | None) -> int:
    """Positions of the cache that one or more of the span's tokens see."""
    return span.end if window is None else min(span.end, span.length + window - 1)


def positions_seen(span: Span, window: int | None) -> int:
    """Σ min(position + 1, window) over the span's positions."""
    cap = span.end if window is None else window
    # Positions before `cap` see all up to themselves, the others exactly `cap`.
    growing_end = max(span.start, min(span.end, cap))
    growing = growing_end * (growing_end + 1) // 2 - span.start * (span.start + 1) // 2
    return growing + (span.end - growing_end) * cap
