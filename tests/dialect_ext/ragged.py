"""Ragged batches over a paged KV cache, with shuffled pages and NaN wherever none may look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Hq query heads, H KV heads, D head dim, ps tokens a page."""

    q: int = 9
    kv: int = 3
    dim: int = 64
    page_size: int = 16


@dataclass(frozen=True, kw_only=True)
class Ragged:
    """Operands of paged_attention; `rows` are (sequence, position) of each token."""

    q: Array
    kv: Array
    page_table: Array
    token_seq: Array
    positions: Array
    query_start: Array
    context_len: Array
    rows: list[tuple[int, int]]

    @property
    def operands(self) -> list[Array]:
        return [
            self.q, self.kv, self.page_table, self.token_seq,
            self.positions, self.query_start, self.context_len,
        ]  # fmt: skip


class Cache:
    """K, V and q of some sequences, laid out in pages once; batches are views of it.

    Slots that no position owns hold NaN, page 0 too.
    """

    def __init__(self, lengths: Sequence[int], heads: Heads, *, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.heads, self.lengths = heads, list(lengths)
        ps = heads.page_size
        num_pages = [-(-n // ps) for n in lengths]
        order = rng.permutation(np.arange(1, sum(num_pages) + 4))
        starts = np.cumsum([0, *num_pages])
        self.pages = [order[a : a + n] for a, n in zip(starts, num_pages, strict=False)]
        self.kv = np.full((len(order) + 1, 2, heads.kv, ps, heads.dim), np.nan, np.float32)
        self.q = [rng.standard_normal((n, heads.q, heads.dim)).astype(np.float32) for n in lengths]
        for pages, length in zip(self.pages, lengths, strict=True):
            for j in range(length):
                self.kv[pages[j // ps], :, :, j % ps] = rng.standard_normal(
                    (2, heads.kv, heads.dim)
                )

    def batch(
        self, parts: Sequence[tuple[int, int, int]], *, spare_columns: int = 0, window: int = 0
    ) -> Ragged:
        """Tokens start … end-1 of sequences, given as (sequence, start, end).

        Args:
            spare_columns: page-table columns beyond what the longest needs
            window: with one, pages that lie wholly before it are freed: their entry is 0
        """
        ps = self.heads.page_size
        columns = max(-(-end // ps) for _, _, end in parts) + spare_columns
        table = np.zeros((len(parts), columns), np.int32)
        for row, (sequence, start, end) in enumerate(parts):
            used = -(-end // ps)
            table[row, :used] = self.pages[sequence][:used]
            if window:
                table[row, : max(0, start - window + 1) // ps] = 0
        rows = [(s, p) for s, start, end in parts for p in range(start, end)]
        counts = [end - start for _, start, end in parts]
        return Ragged(
            q=np.stack([self.q[s][p] for s, p in rows]),
            kv=self.kv,
            page_table=table,
            token_seq=np.repeat(np.arange(len(parts), dtype=np.int32), counts),
            positions=np.array([p for _, p in rows], np.int32),
            query_start=np.cumsum([0, *counts]).astype(np.int32),
            context_len=np.array([end for _, _, end in parts], np.int32),
            rows=rows,
        )
