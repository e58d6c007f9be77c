"""A StepRunner in numpy whose answers depend on every token it finds in the cache.

Each token leaves a number in its group's storage, at its slot.  A row of logits is a
hash of the numbers read back through the page table, from all positions that the
token may look at.  So a wrong slot, page, length or position, a page given away too
early or shared by mistake, all change the output; `reference_row` says what it should be.

Shape legend: T tokens, S sequences, G groups, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from llmir.errors import DeviceError
from llmir.runtime.base import F32, I32, PADDING_PAGE, StepBatch, StepLimits, TopLogits

MASK = (1 << 64) - 1


def mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser, on uint64."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def token_value(token_ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """What a token leaves in the cache."""
    with np.errstate(over="ignore"):
        return mix(
            token_ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
            + positions.astype(np.uint64) * np.uint64(0xD1342543DE82EF95)
            + np.uint64(1)
        )


def logits_from(state: int, vocab_size: int) -> F32:
    """A row of logits, about -4 … 4, from one number."""
    with np.errstate(over="ignore"):
        words = mix(np.arange(vocab_size, dtype=np.uint64) * np.uint64(0xA24BAED4963EE407) + state)
    return ((words >> np.uint64(40)).astype(np.float32) / np.float32(1 << 21) - 4).astype(
        np.float32
    )


def combine(values_by_group: Sequence[np.ndarray]) -> np.uint64:
    state = np.uint64(0)
    for group, values in enumerate(values_by_group):
        with np.errstate(over="ignore"):
            total = values.sum(dtype=np.uint64) + np.uint64(group + 1)
            state = mix(np.array(state * np.uint64(31) + total))[()]
    return state


def reference_row(token_ids: Sequence[int], vocab_size: int, windows: Sequence[int | None]) -> F32:
    """The logits after the last of `token_ids`, without any cache."""
    values = token_value(np.array(token_ids), np.arange(len(token_ids)))
    return logits_from(combine([values if w is None else values[-w:] for w in windows]), vocab_size)


def reference_greedy(
    prompt: Sequence[int], max_tokens: int, limits: StepLimits, eos: Sequence[int] = ()
) -> list[int]:
    """The greedy continuation, each step from scratch."""
    tokens = list(prompt)
    for _ in range(max_tokens):
        row = reference_row(tokens, limits.vocab_size, limits.group_windows)
        tokens.append(int(row.argmax()))
        if tokens[-1] in eos:
            break
    return tokens[len(prompt) :]


def small_limits(**changes: object) -> StepLimits:
    limits = StepLimits(
        page_size=4,
        num_pages=(64,),
        group_windows=(None,),
        max_model_len=128,
        max_num_batched_tokens=32,
        max_num_seqs=8,
        vocab_size=64,
    )
    return dataclasses.replace(limits, **changes)


class FakeRunner:
    """Checks every batch it gets and runs the hash model on it.

    fail_at:  the number of a step (from 0) that raises DeviceError.
    top_k:    how many logits step_topk gives.
    batches:  all batches run, for tests to look at.
    calls:    the functions that ran them.
    """

    def __init__(
        self, limits: StepLimits | None = None, fail_at: int | None = None, top_k: int = 0
    ) -> None:
        self._limits = limits or small_limits()
        self.storage = [
            np.zeros(pages * self._limits.page_size, np.uint64) for pages in self._limits.num_pages
        ]
        self.fail_at = fail_at
        self.top_k = top_k
        self.batches: list[StepBatch] = []
        self.calls: list[str] = []

    @property
    def limits(self) -> StepLimits:
        return self._limits

    def step(self, batch: StepBatch) -> F32:
        return self._logits(batch, "step")

    def step_greedy(self, batch: StepBatch) -> I32:
        return self._logits(batch, "step_greedy").argmax(axis=1).astype(np.int32)

    def step_topk(self, batch: StepBatch) -> TopLogits:
        logits = self._logits(batch, "step_topk")
        ids = np.argsort(-logits, axis=1, kind="stable")[:, : self.top_k]
        values = np.take_along_axis(logits, ids, axis=1)
        weights = np.exp(logits - values[:, :1]).sum(axis=1)
        return TopLogits(values=values, token_ids=ids.astype(np.int32), weights=weights)

    def _logits(self, batch: StepBatch, call: str) -> F32:
        if self.fail_at == len(self.batches):
            self.fail_at = None
            raise DeviceError("the fake device failed, as it was told to")
        check_batch(batch, self._limits)
        self.batches.append(batch)
        self.calls.append(call)
        for storage, slots in zip(self.storage, batch.slots, strict=True):
            storage[slots] = token_value(batch.token_ids, batch.positions)
        rows = [self._row(batch, int(token)) for token in batch.logit_rows]
        return np.array(rows, np.float32).reshape(len(rows), self._limits.vocab_size)

    def _row(self, batch: StepBatch, token: int) -> F32:
        page_size = self._limits.page_size
        position, seq = int(batch.positions[token]), int(batch.token_seq[token])
        values = []
        for group, window in enumerate(self._limits.group_windows):
            first = 0 if window is None else max(0, position - window + 1)
            seen = np.arange(first, position + 1)
            pages = batch.page_table[group, seq, seen // page_size]
            assert (pages != PADDING_PAGE).all(), "a page that is needed is not there"
            values.append(self.storage[group][pages * page_size + seen % page_size])
        return logits_from(combine(values), self._limits.vocab_size)


def check_batch(batch: StepBatch, limits: StepLimits) -> None:
    """The contract of StepBatch, as asserts."""
    num_tokens, num_seqs = len(batch.token_ids), len(batch.context_len)
    num_groups = len(limits.num_pages)
    for field in dataclasses.fields(batch):
        assert getattr(batch, field.name).dtype == np.int32, field.name
    assert 1 <= num_tokens <= limits.max_num_batched_tokens
    assert 1 <= num_seqs <= limits.max_num_seqs
    assert batch.query_start.shape == (num_seqs + 1,)
    assert batch.query_start[0] == 0
    assert batch.query_start[-1] == num_tokens
    assert batch.page_table.shape[:2] == (num_groups, num_seqs)
    assert batch.slots.shape == (num_groups, num_tokens)
    assert ((batch.token_ids >= 0) & (batch.token_ids < limits.vocab_size)).all()
    lengths = np.diff(batch.query_start)
    assert (lengths > 0).all()
    assert (batch.token_seq == np.repeat(np.arange(num_seqs), lengths)).all()
    for s in range(num_seqs):
        own = slice(batch.query_start[s], batch.query_start[s + 1])
        end = int(batch.context_len[s])
        assert end <= limits.max_model_len
        assert (batch.positions[own] == np.arange(end - lengths[s], end)).all()
    for g in range(num_groups):
        pages = batch.page_table[g, batch.token_seq, batch.positions // limits.page_size]
        offsets = batch.positions % limits.page_size
        assert (batch.slots[g] == pages * limits.page_size + offsets).all()
        assert (pages != PADDING_PAGE).all(), "a token is written to the padding page"
        assert len(set(batch.slots[g].tolist())) == num_tokens, "a slot is written twice"
        used = batch.page_table[g]
        assert ((used >= 0) & (used < limits.num_pages[g])).all()
        holders: dict[int, set[int]] = {}
        for s, row in enumerate(used.tolist()):
            pages_of_row = [page for page in row if page != PADDING_PAGE]
            assert len(set(pages_of_row)) == len(pages_of_row), "a sequence has a page twice"
            for page in pages_of_row:
                holders.setdefault(page, set()).add(s)
        for page, s in zip(pages.tolist(), batch.token_seq.tolist(), strict=True):
            assert holders[page] == {s}, "a page is written that another sequence reads"
    rows = batch.logit_rows.tolist()
    assert all(0 <= row < num_tokens for row in rows)
    assert rows == sorted(set(rows))
