"""The step whose ops are run alone: three sequences, a prompt, a chunk of one, and a decode.

Shape legend as in runtime.base.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmir.artifact import Manifest
from llmir.runtime.base import I32, StepBatch

# (first position, end) of each sequence's tokens in the step: 9 tokens, in 1 to 3 pages of 16.
_SPANS = ((0, 5), (20, 23), (37, 38))


def op_batch(manifest: Manifest) -> StepBatch:
    """The batch, with as many of the sequences as the artifact was compiled for.

    Token ids are drawn at random, pages are in no order, and each sequence wants the logits of
    its last token.
    """
    limits, kv = manifest.limits, manifest.kv
    spans: list[tuple[int, int]] = []
    for start, end in _SPANS[: limits.max_num_seqs]:
        tokens = sum(b - a for a, b in spans) + end - start
        if end <= limits.max_model_len and tokens <= limits.max_num_batched_tokens:
            spans.append((start, end))
    spans = spans or [(0, 1)]
    rng = np.random.default_rng(0)
    columns = max(-(-end // kv.page_size) for _, end in spans)
    groups = len(kv.group_windows)
    # Page 0 is for padding.
    pages = 1 + rng.permutation(len(spans) * columns).reshape(len(spans), columns)
    lengths = [end - start for start, end in spans]
    token_seq = np.repeat(np.arange(len(spans)), lengths)
    positions = np.concatenate([np.arange(*span) for span in spans])
    slots = pages[token_seq, positions // kv.page_size] * kv.page_size + positions % kv.page_size
    query_start = np.cumsum([0, *lengths])

    def i32(values: NDArray[Any]) -> I32:
        return np.ascontiguousarray(values, np.int32)

    return StepBatch(
        token_ids=i32(rng.integers(0, manifest.model.vocab_size, len(positions))),
        positions=i32(positions),
        token_seq=i32(token_seq),
        query_start=i32(query_start),
        context_len=i32(np.array([end for _, end in spans])),
        page_table=i32(np.broadcast_to(pages, (groups, *pages.shape))),
        slots=i32(np.broadcast_to(slots, (groups, len(slots)))),
        logit_rows=i32(query_start[1:] - 1),
    )
