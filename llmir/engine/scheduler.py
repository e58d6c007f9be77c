"""Who computes what in the next step: a function of the queues and the free pages alone.

First come, first served, under a budget of tokens per step.  Long prompts are
computed in chunks, together with the decodes of others.  When pages run out the
youngest running sequence gives all of its up and is computed again later: the oldest
one can always go on, so that everything ends.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from llmir.engine.block_manager import BlockManager
from llmir.engine.sequence import Sequence, Status
from llmir.errors import OptionError
from llmir.runtime.base import StepLimits

DEFAULT_LOGIT_ROWS = 256
"""Rows of logits in one step: of a large vocabulary, some hundred kilobytes each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """How much one step does.  None: as much as the artifact allows.

    max_num_batched_tokens  tokens in a step
    max_num_seqs            sequences that run at a time
    max_logit_rows          rows of logits in a step, of which scoring wants one per token
    max_prefill_chunk       tokens of one sequence in a step
    prefill_splits          positions that no chunk crosses; with it a test can split a
                            prompt anywhere
    enable_prefix_caching   sequences that begin alike share the KV pages of what they share
    """

    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None
    max_logit_rows: int | None = None
    max_prefill_chunk: int | None = None
    prefill_splits: tuple[int, ...] = ()
    enable_prefix_caching: bool = True


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens start … start + length - 1 of a sequence, computed in one step."""

    seq: Sequence
    start: int
    length: int

    @property
    def end(self) -> int:
        return self.start + self.length

    @property
    def prompt_rows(self) -> range:
        """Positions whose logits the sequence wants for themselves."""
        rows = self.seq.prompt_rows
        return range(0) if rows is None else rows.wanted(self.start, self.end)

    @property
    def samples(self) -> bool:
        """Whether the next token is chosen after this chunk."""
        return self.end == self.seq.num_tokens and self.seq.max_tokens > 0


@dataclass(frozen=True, slots=True)
class Schedule:
    """What one step computes, and who lost its pages for it."""

    chunks: list[Chunk]
    preempted: list[Sequence]


class Scheduler:
    """The queues.

    Attributes:
        waiting: not begun, or preempted; oldest first.
        running: holding pages; oldest first.
    """

    def __init__(self, limits: StepLimits, config: SchedulerConfig | None = None) -> None:
        config = config or SchedulerConfig()
        self.max_num_batched_tokens = _within(
            "max_num_batched_tokens", config.max_num_batched_tokens, limits.max_num_batched_tokens
        )
        # With a token for each of them nobody who runs is left out of a step.
        self.max_num_seqs = min(
            _within("max_num_seqs", config.max_num_seqs, limits.max_num_seqs),
            self.max_num_batched_tokens,
        )
        self.max_logit_rows = max(config.max_logit_rows or DEFAULT_LOGIT_ROWS, self.max_num_seqs)
        self.max_prefill_chunk = _within(
            "max_prefill_chunk", config.max_prefill_chunk, self.max_num_batched_tokens
        )
        self.prefill_splits = tuple(sorted(config.prefill_splits))
        self.blocks = BlockManager(limits, prefix_caching=config.enable_prefix_caching)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def add(self, seq: Sequence) -> None:
        self.waiting.append(seq)

    def schedule(self) -> Schedule:
        """Choose the next step's chunks and give them their pages."""
        chunks: list[Chunk] = []
        preempted: list[Sequence] = []
        tokens, rows = self.max_num_batched_tokens, self.max_logit_rows

        index = 0
        while index < len(self.running) and tokens > 0:
            seq = self.running[index]
            younger = len(self.running) - index - 1
            want = self._chunk_length(seq, tokens - younger, rows - younger)
            length = self.blocks.max_chunk(seq, want)
            while length == 0:
                preempted.append(self._preempt_youngest())
                if preempted[-1] is seq:
                    break
                length = self.blocks.max_chunk(seq, want)
            if length == 0:
                break
            tokens, rows = self._take(seq, length, chunks, tokens, rows)
            index += 1

        # Whoever lost its pages comes first, and waits until all of them are free again.
        held_back: list[Sequence] = []
        while self.waiting and tokens > 0 and rows > 0:
            if len(self.running) == self.max_num_seqs:
                break
            seq = self.waiting.popleft()
            if self._waits_for_leader(seq):
                held_back.append(seq)
                continue
            if not self.blocks.admit(seq, self.max_prefill_chunk, self.running):
                self.waiting.appendleft(seq)
                break
            self.running.append(seq)
            seq.status = Status.RUNNING
            length = self.blocks.max_chunk(seq, self._chunk_length(seq, tokens, rows))
            tokens, rows = self._take(seq, length, chunks, tokens, rows)
        self.waiting.extendleft(reversed(held_back))
        assert chunks or not (self.waiting or self.running), "sequences left, and none can go on"
        return Schedule(chunks, preempted)

    def advance(self, chunk: Chunk) -> None:
        """Note that the chunk has been computed."""
        chunk.seq.num_computed_tokens = chunk.end
        self.blocks.advance(chunk.seq)

    def finish(self, seq: Sequence) -> None:
        """Take a sequence out, wherever it stands, and free what it holds."""
        if seq.status is Status.RUNNING:
            self.running.remove(seq)
        elif seq.status is Status.WAITING:
            self.waiting.remove(seq)
        seq.status = Status.FINISHED
        self.blocks.free(seq)

    def _take(
        self, seq: Sequence, length: int, chunks: list[Chunk], tokens: int, rows: int
    ) -> tuple[int, int]:
        chunk = Chunk(seq, seq.num_computed_tokens, length)
        self.blocks.allocate(seq, chunk.end)
        chunks.append(chunk)
        return tokens - length, rows - len(chunk.prompt_rows) - chunk.samples

    def _waits_for_leader(self, seq: Sequence) -> bool:
        """Whether the pages that `seq` begins with are being computed for its leader."""
        leader = seq.leader
        if leader is None or self.blocks.tree is None or leader.status is not Status.RUNNING:
            return False
        columns = (len(seq.prompt_token_ids) - 1) // self.blocks.page_size
        return leader.num_computed_tokens < columns * self.blocks.page_size

    def _preempt_youngest(self) -> Sequence:
        seq = self.running.pop()
        self.blocks.free(seq)
        seq.num_computed_tokens = 0
        seq.status = Status.WAITING
        self.waiting.appendleft(seq)  # older than all that wait, younger than all that run
        return seq

    def _chunk_length(self, seq: Sequence, tokens: int, rows: int) -> int:
        """Tokens of `seq` that fit these budgets; pages are another matter."""
        if tokens < 1 or rows < 1:
            return 0
        length = min(seq.num_remaining, tokens, self.max_prefill_chunk)
        if seq.prompt_rows is not None:
            length = min(length, rows)  # a token wants one row at most
        start = seq.num_computed_tokens
        for split in self.prefill_splits:
            if start < split < start + length:
                length = split - start
        return length


def _within(name: str, value: int | None, limit: int) -> int:
    if value is None:
        return limit
    if not isinstance(value, int) or not 1 <= value <= limit:
        raise OptionError(f"{name} must be between 1 and {limit}, not {value!r}")
    return value
