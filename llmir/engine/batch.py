"""From scheduled chunks to the arrays of a step.

Shape legend as in runtime.base: T tokens, S sequences, P page-table columns,
G groups, L rows of logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmir.engine.scheduler import Chunk
from llmir.runtime.base import StepBatch, StepLimits


def build_batch(chunks: Sequence[Chunk], limits: StepLimits) -> StepBatch:
    """The StepBatch of `chunks`, whose sequences hold their pages already.

    The rows of logits are, chunk by chunk, `chunk.prompt_rows` and then, where
    `chunk.samples`, the chunk's last token.
    """
    num_groups = len(limits.num_pages)
    lengths = np.array([chunk.length for chunk in chunks], np.int32)
    query_start = np.zeros(len(chunks) + 1, np.int32)
    np.cumsum(lengths, out=query_start[1:])
    num_tokens = int(query_start[-1])
    columns = max(len(chunk.seq.pages[0]) for chunk in chunks)

    token_ids = np.empty(num_tokens, np.int32)
    positions = np.empty(num_tokens, np.int32)
    page_table = np.zeros((num_groups, len(chunks), columns), np.int32)
    logit_rows: list[int] = []
    for s, chunk in enumerate(chunks):
        first = int(query_start[s])
        token_ids[first : first + chunk.length] = chunk.seq.tokens(chunk.start, chunk.end)
        positions[first : first + chunk.length] = np.arange(chunk.start, chunk.end)
        for g, pages in enumerate(chunk.seq.pages):
            page_table[g, s, : len(pages)] = pages
        logit_rows += [first + position - chunk.start for position in chunk.prompt_rows]
        if chunk.samples:
            logit_rows.append(first + chunk.length - 1)

    token_seq = np.repeat(np.arange(len(chunks), dtype=np.int32), lengths)
    pages_GT = page_table[:, token_seq, positions // limits.page_size]
    return StepBatch(
        token_ids=token_ids,
        positions=positions,
        token_seq=token_seq,
        query_start=query_start,
        context_len=np.array([chunk.end for chunk in chunks], np.int32),
        page_table=page_table,
        slots=pages_GT * np.int32(limits.page_size) + positions % np.int32(limits.page_size),
        logit_rows=np.array(logit_rows, np.int32),
    )
