"""Who computes what in the next step: a function of the queues and the free pages alone.

    waiting ──── admitted when there is room ───→ running ───→ finished
      ↑ add()          preempted ←── pages run out ──┘ ↑
                           └────────── resumed ────────┘

Everyone who runs gets a token in every step, under a budget of tokens per step, and what is left
of it goes to chunks of prompts; where max_prefill_per_decode is set, these stay short as long as
others wait for their next token.  When pages run out the last in rank of those that run gives all
of its up and is computed again later: the first in rank can always go on, so that everything
ends.  Who was preempted is resumed before anybody new is begun.

Who begins with tokens that another is computing just now is held back until they are in the cache.
It waits for one that runs, and everyone who runs goes on in every step: were that one to be
preempted, aborted or finished, nobody would be computing those tokens, and it would begin.
"""

from __future__ import annotations

import itertools
from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass, field

from llmir.engine.block_manager import BlockManager
from llmir.engine.policies import make_policy
from llmir.engine.scheduler_config import DEFAULT_LOGIT_ROWS, SchedulerConfig
from llmir.engine.sequence import Sequence, Status
from llmir.engine.stats import SchedulerStats
from llmir.engine.waiting_queue import WaitingQueue
from llmir.errors import RequestError
from llmir.runtime.base import StepLimits

__all__ = ["Chunk", "Schedule", "Scheduler", "SchedulerConfig", "SchedulerStats"]

LEAST_PREFILL = 8
"""Tokens of prompts that a step may have beside any number of decodes, …"""

PREFILL_PER_PROMPT = 8
"""… and as many more for each sequence that waits for its first token and has a seat."""


@dataclass(slots=True, eq=False)
class Chunk:
    """Tokens start … end - 1 of a sequence, computed in one step.

    drafts:  the last of them, if they are not the sequence's yet but proposed
    samples: whether the next token is chosen after this chunk; with drafts, whether one is
             chosen after each of these too.
    """

    seq: Sequence
    start: int
    length: int
    drafts: list[int] = field(default_factory=list)
    end: int = field(init=False)
    samples: bool = field(init=False)

    def __post_init__(self) -> None:
        self.end = self.start + self.length
        end = self.end - len(self.drafts)
        self.samples = end == self.seq.num_tokens and self.seq.max_tokens > 0

    def tokens(self) -> list[int]:
        """What is computed."""
        return self.seq.tokens(self.start, self.end - len(self.drafts)) + self.drafts

    def refuse(self, count: int) -> None:
        """Note that the last drafts were not what was chosen: they are not computed then."""
        self.end -= count

    @property
    def prompt_rows(self) -> range:
        """Positions whose logits the sequence wants for themselves."""
        rows = self.seq.prompt_rows
        return range(0) if rows is None else rows.wanted(self.start, self.end)


@dataclass(slots=True, eq=False)
class Schedule:
    """What one step computes, and who lost its pages for it.

    num_tokens, num_rows: what is left of the step's budgets.
    num_prefill_tokens:   how many of those tokens may still be of prompts.
    """

    num_tokens: int
    num_rows: int
    num_prefill_tokens: int
    chunks: list[Chunk] = field(default_factory=list)
    preempted: list[Sequence] = field(default_factory=list)


class Scheduler:
    """The queues.

    Attributes:
        running: holding pages; by rank.
        preempted: those that ran and lost their pages; by rank.
        num_preemptions: how often that happened.
    """

    def __init__(self, limits: StepLimits, config: SchedulerConfig | None = None) -> None:
        config = config or SchedulerConfig()
        config.check(limits)
        self.config = config
        self.max_num_batched_tokens = config.max_num_batched_tokens or limits.max_num_batched_tokens
        # With a token for each of them nobody who runs is left out of a step.
        self.max_num_seqs = min(
            config.max_num_seqs or limits.max_num_seqs, self.max_num_batched_tokens
        )
        self.max_logit_rows = max(config.max_logit_rows or DEFAULT_LOGIT_ROWS, self.max_num_seqs)
        self.max_prefill_chunk = config.max_prefill_chunk or self.max_num_batched_tokens
        self.prefill_splits = tuple(sorted(config.prefill_splits))
        self.policy = make_policy(config.scheduling_policy)
        self.blocks = BlockManager(
            limits,
            prefix_caching=config.enable_prefix_caching,
            max_chunk=self.max_prefill_chunk,
            reserve_output=config.admission == "guaranteed_no_evict",
        )
        self.running: list[Sequence] = []
        self.preempted: list[Sequence] = []
        self.num_preemptions = 0
        self._waiting = WaitingQueue(self.policy, config.max_overtakes)
        self._arrivals = itertools.count()

    @property
    def waiting(self) -> list[Sequence]:
        """Who holds no pages and wants some: the preempted first, then who has not begun."""
        return [*self.preempted, *self._waiting]

    def add(self, seq: Sequence) -> None:
        """Queue a sequence; `check_priority` has seen its priority."""
        seq.arrival = next(self._arrivals)
        self._waiting.add(seq)

    def check_priority(self, priority: int) -> None:
        """Raises RequestError: not a number, or not 0 under a policy that does not look at it."""
        if isinstance(priority, bool) or not isinstance(priority, int):
            raise RequestError(f"priority must be an integer, not {priority!r}")
        policy = self.config.scheduling_policy
        if priority != 0 and policy != "priority":
            raise RequestError(
                f"priority is {priority}, but scheduling_policy is {policy!r}, which serves all "
                "requests alike: start the engine with scheduling_policy 'priority'"
            )

    def schedule(self) -> Schedule:
        """Choose the next step's chunks and give them their pages."""
        schedule = Schedule(
            self.max_num_batched_tokens, self.max_logit_rows, self._prefill_budget()
        )
        self._continue(schedule)
        if self.preempted or self._waiting:
            self._admit(schedule)
        assert schedule.chunks or not self.waiting, "sequences wait, and none can go on"
        return schedule

    def advance(self, chunk: Chunk) -> None:
        """Note that the chunk has been computed."""
        chunk.seq.num_computed_tokens = chunk.end
        self.blocks.advance(chunk.seq)

    def finish(self, seq: Sequence) -> None:
        """Take a sequence out, wherever it stands, and free what it holds."""
        if seq.status is Status.RUNNING:
            self.running.remove(seq)
        elif seq.status is Status.PREEMPTED:
            self.preempted.remove(seq)
        elif seq.status is Status.WAITING:
            self._waiting.remove(seq)
        seq.status = Status.FINISHED
        self.blocks.free(seq)

    def stats(self) -> SchedulerStats:
        """How things stand, between two steps."""
        blocks = self.blocks
        return SchedulerStats(
            num_running=len(self.running),
            num_waiting=len(self.preempted) + len(self._waiting),
            kv_cache_usage=blocks.usage,
            prefix_cache_queries=blocks.num_queried_tokens,
            prefix_cache_hits=blocks.num_hit_tokens,
            num_preemptions=self.num_preemptions,
            num_pinned_pages=0 if blocks.pins is None else sum(blocks.pins.num_pages),
            num_unused_slots=blocks.num_unused_slots(self.running),
        )

    # -- those that run --------------------------------------------------------------------

    def _continue(self, schedule: Schedule) -> None:
        """A chunk for everyone who runs and can go on."""
        running, page_size = self.running, self.blocks.page_size
        index = 0
        while index < len(running):
            seq = running[index]
            later = len(running) - index - 1  # for each of whom a token and a row is kept
            length = self._chunk_length(seq, schedule, later)
            if seq.num_computed_tokens + length > seq.num_columns * page_size:
                length = self._find_pages(seq, length, schedule)
                if length == 0:
                    break
            self._take(seq, length, schedule)
            index += 1

    def _find_pages(self, seq: Sequence, want: int, schedule: Schedule) -> int:
        """How many of `want` tokens there are pages for, which others give up if there are none;
        0: `seq` itself was the last that could."""
        length = self.blocks.max_chunk(seq, want)
        while length == 0:
            last = self.running[-1]
            self._preempt(last)
            schedule.preempted.append(last)
            if last is seq:
                break
            length = self.blocks.max_chunk(seq, want)
        return length

    def _preempt(self, seq: Sequence) -> None:
        self.running.remove(seq)
        self.blocks.free(seq)
        seq.num_computed_tokens = 0
        seq.status = Status.PREEMPTED
        if any(other.arrival > seq.arrival for other in self.running):
            seq.num_overtaken += 1
        insort(self.preempted, seq, key=self._rank)
        self.num_preemptions += 1

    def _rank(self, seq: Sequence) -> tuple[int, ...]:
        """Fixed while `seq` runs: who is overtaken is waiting then, or preempted by that."""
        if self._waiting.is_due(seq):
            return 0, 0, seq.arrival
        return 1, self.policy.rank(seq), seq.arrival

    # -- those that wait -------------------------------------------------------------------

    def _admit(self, schedule: Schedule) -> None:
        """Begin who fits, in order; the first who does not keeps the others waiting."""
        if self._is_full(schedule):
            return
        room = self.blocks.room(self.running)
        computing = {self.blocks.computing(seq) for seq in self.running}
        num_held_back = 0
        for seq in self._candidates():
            wanted = self.blocks.wanted(seq)
            if wanted is not None and wanted in computing:
                # Another computes what comes next in `seq`: it begins when that is in the cache.
                num_held_back += 1
                if self._waiting.is_due(seq) or num_held_back == self.max_num_seqs:
                    break
                continue
            if not self.blocks.admit(seq, room):
                break
            self._begin(seq)
            length = self._chunk_length(seq, schedule, 0)
            self._take(seq, self.blocks.max_chunk(seq, length), schedule)
            if self._is_full(schedule):
                break
            computing.add(self.blocks.computing(seq))

    def _begin(self, seq: Sequence) -> None:
        if seq.status is Status.PREEMPTED:
            self.preempted.remove(seq)
        else:
            self._waiting.begin(seq)
        seq.status = Status.RUNNING
        insort(self.running, seq, key=self._rank)

    def _is_full(self, schedule: Schedule) -> bool:
        """Whether nobody else can be taken in, whatever the pages."""
        return (
            len(self.running) == self.max_num_seqs
            or schedule.num_tokens == 0
            or schedule.num_rows == 0
            or schedule.num_prefill_tokens == 0
        )

    def _candidates(self) -> Iterator[Sequence]:
        """Who is to be taken in, in this order."""
        yield from list(self.preempted)
        if not self.preempted:
            yield from self._waiting.candidates(self.blocks.num_cached_columns)

    # -- chunks ----------------------------------------------------------------------------

    def _prefill_budget(self) -> int:
        """Tokens of prompts that the next step may have."""
        per_decode = self.config.max_prefill_per_decode
        num_decodes = sum(seq.num_remaining == 1 for seq in self.running)
        if per_decode is None or num_decodes == 0:
            return self.max_num_batched_tokens
        # Who waits for a first token counts too: were it the decodes alone, few of them would
        # mean short chunks, and these that they stay few.
        waiting = len(self.preempted) + len(self._waiting)
        num_prompts = min(waiting + len(self.running), self.max_num_seqs) - num_decodes
        budget = LEAST_PREFILL + PREFILL_PER_PROMPT * num_prompts + int(per_decode * num_decodes)
        return min(budget, self.max_num_batched_tokens)

    def _take(self, seq: Sequence, length: int, schedule: Schedule) -> None:
        num_drafts = max(0, length - seq.num_remaining)
        chunk = Chunk(seq, seq.num_computed_tokens, length, seq.drafts[:num_drafts])
        self.blocks.allocate(seq, chunk.end)
        schedule.chunks.append(chunk)
        schedule.num_tokens -= length
        schedule.num_rows -= chunk.samples * (1 + num_drafts)
        if seq.num_remaining > 1:
            schedule.num_prefill_tokens -= min(length, schedule.num_prefill_tokens)
        if seq.prompt_rows is not None:
            schedule.num_rows -= len(chunk.prompt_rows)

    def _chunk_length(self, seq: Sequence, schedule: Schedule, later: int) -> int:
        """Tokens of `seq` that fit what is left of the budgets, of which a token and a row are
        kept for each of `later` others; pages are another matter."""
        tokens, rows = schedule.num_tokens - later, schedule.num_rows - later
        length = seq.num_remaining
        if length == 1:
            return 1 + self._num_drafts(seq, min(tokens, rows) - 1)
        # Everyone who runs gets on, if by a token.
        length = min(length, tokens, self.max_prefill_chunk, max(1, schedule.num_prefill_tokens))
        if seq.prompt_rows is not None:
            length = min(length, rows)  # a token wants one row at most
        start = seq.num_computed_tokens
        for split in self.prefill_splits:
            if start < split < start + length:
                length = split - start
        return length

    def _num_drafts(self, seq: Sequence, limit: int) -> int:
        """How many of its drafts are verified, which nobody shall lose a page for."""
        if not seq.drafts:
            return 0
        count = min(len(seq.drafts), limit, self.max_prefill_chunk - 1)
        if min(self.blocks.num_free) <= len(self.running):
            room = seq.num_columns * self.blocks.page_size - seq.num_computed_tokens - 1
            count = min(count, room)
        return max(0, count)
