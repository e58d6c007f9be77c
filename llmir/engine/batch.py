"""From scheduled chunks to the arrays of a step.

Shape legend as in runtime.base: T tokens, S sequences, P page-table columns,
G groups, L rows of logits.

What is done for each chunk in Python costs some 0.3 µs and is paid 256 times in a full step: the
loops here are few, and everything else is numpy's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmir.engine.page_table import PageTable
from llmir.engine.scheduler import Chunk
from llmir.runtime.base import I32, StepBatch


def build_batch(chunks: Sequence[Chunk], table: PageTable) -> StepBatch:
    """The StepBatch of `chunks`, whose sequences hold their pages already.

    The rows of logits are, chunk by chunk, `chunk.prompt_rows` and then, where
    `chunk.samples`, the chunk's last token, after those before it that have a draft next.
    """
    lengths = np.array([chunk.length for chunk in chunks], np.int32)
    ends = np.array([chunk.end for chunk in chunks], np.int32)
    query_start = np.zeros(len(chunks) + 1, np.int32)
    np.cumsum(lengths, out=query_start[1:])
    token_seq = np.repeat(np.arange(len(chunks), dtype=np.int32), lengths)
    positions = np.arange(query_start[-1], dtype=np.int32) + (ends - query_start[1:])[token_seq]
    token_ids: list[int] = []
    for chunk in chunks:
        token_ids += chunk.tokens()

    seqs = [chunk.seq for chunk in chunks]
    rows = [seq.row for seq in seqs if seq.row is not None]
    assert len(rows) == len(seqs), "a sequence is computed that holds no pages"
    page_table = table.gather(rows, max(seq.num_columns for seq in seqs))
    pages_GT = page_table[:, token_seq, positions // table.page_size]
    return StepBatch(
        token_ids=np.array(token_ids, np.int32),
        positions=positions,
        token_seq=token_seq,
        query_start=query_start,
        context_len=ends,
        page_table=page_table,
        slots=pages_GT * np.int32(table.page_size) + positions % np.int32(table.page_size),
        logit_rows=_logit_rows(chunks, query_start),
    )


def _logit_rows(chunks: Sequence[Chunk], query_start: I32) -> I32:
    if all(chunk.seq.prompt_rows is None and not chunk.drafts for chunk in chunks):
        return query_start[1:][[chunk.samples for chunk in chunks]] - np.int32(1)
    rows: list[int] = []
    for first, chunk in zip(query_start.tolist(), chunks, strict=False):
        rows += [first + position - chunk.start for position in chunk.prompt_rows]
        if chunk.samples:
            end = first + chunk.length
            rows += range(end - 1 - len(chunk.drafts), end)
    return np.array(rows, np.int32)
