"""The contract between the engine and whatever runs a step.

Shape legend: T tokens in this step, S sequences, P page-table columns, G groups
of layers that share a page table, L rows whose logits are wanted (may be 0),
V vocabulary.

Nothing here imports IREE: the engine, and a fake runner in a test, need only this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

I32 = NDArray[np.int32]
F32 = NDArray[np.float32]

PADDING_PAGE = 0
"""Page 0 of every pool is never handed out: padding writes go there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLimits:
    """What one step can hold, and what the KV pools can.

    page_size:               tokens per page
    num_pages:               pages of each group's pool, page 0 included; one entry per group
    group_windows:           sliding window of each group in tokens, None for full attention
    max_model_len:           longest sequence, prompt and output together
    max_num_batched_tokens:  largest T
    max_num_seqs:            largest S
    vocab_size:              V
    """

    page_size: int
    num_pages: tuple[int, ...]
    group_windows: tuple[int | None, ...]
    max_model_len: int
    max_num_batched_tokens: int
    max_num_seqs: int
    vocab_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBatch:
    """One ragged batch: prefill, decode, or any mixture.

    token_ids    [T]      tokens of sequence 0, then of sequence 1, …
    positions    [T]      position of each token in its sequence, from 0
    token_seq    [T]      which sequence (0 … S-1) each token belongs to
    query_start  [S+1]    sequence s owns tokens query_start[s] … query_start[s+1]-1
    context_len  [S]      tokens of the sequence in the cache after this step
    page_table   [G,S,P]  page that holds positions p*page_size … ; 0 where there is none
    slots        [G,T]    page * page_size + offset: where each token's K and V go
    logit_rows   [L]      indices into the T tokens
    """

    token_ids: I32
    positions: I32
    token_seq: I32
    query_start: I32
    context_len: I32
    page_table: I32
    slots: I32
    logit_rows: I32


@dataclass(frozen=True, slots=True, kw_only=True)
class TopLogits:
    """Of each row of logits the k largest, and what all of the row weighs beside the largest.

    values     [L,k]  the largest logits, falling; NaN where a row's largest is not finite
    token_ids  [L,k]  whose they are, the lower first among equals; -1 there
    weights    [L]    Σ_v e^(logits[l, v] - values[l, 0]): of every token, not of these; NaN there
    """

    values: F32
    token_ids: I32
    weights: F32


class StepRunner(Protocol):
    """Runs steps on a device that holds the weights and the KV pools."""

    @property
    def limits(self) -> StepLimits: ...

    @property
    def top_k(self) -> int:
        """How many of the largest logits `step_topk` gives; 0: there is no `step_topk`."""
        ...

    def step(self, batch: StepBatch) -> F32:
        """Run one ragged batch; writes its K and V into the pools.

        Returns float32 [L, V], row i the logits of token `batch.logit_rows[i]`.
        Raises DeviceError when the device fails.
        """
        ...

    def step_greedy(self, batch: StepBatch) -> I32:
        """Run one ragged batch as `step` does, and choose the likeliest token of each row.

        Returns int32 [L]: the lowest of the tokens whose logit is the largest; -1 where that
        is not finite.  The logits are neither written nor moved.
        Raises DeviceError when the device fails.
        """
        ...

    def step_topk(self, batch: StepBatch) -> TopLogits:
        """Run one ragged batch as `step` does, and give the `top_k` largest logits of each row.

        The rest of the logits is neither written nor moved.
        Raises DeviceError when the device fails.
        """
        ...
