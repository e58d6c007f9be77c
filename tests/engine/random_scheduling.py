"""A scheduler driven at random, and what must hold after each of its steps.

Nothing here asks the scheduler whether it is right.  Every slot of every page has a mark, made of
the tokens that were before it when it was written; a chunk may only see the marks of its own
tokens.  Who was overtaken, preempted and left waiting is counted from what ran.
"""

from __future__ import annotations

import random
from collections import Counter

import numpy as np

from llmir.engine.batch import build_batch
from llmir.engine.pins import PinnedPrefix
from llmir.engine.prompt_rows import PromptRows
from llmir.engine.scheduler import Chunk, Scheduler, SchedulerConfig
from llmir.engine.sequence import Sequence
from llmir.errors import RequestError
from llmir.runtime.base import StepLimits

from .fake_runner import check_batch, small_limits
from .helpers import assert_scheduler_adds_up, assert_stats
from .scheduling import make_seq

GROUPS: list[tuple[int | None, ...]] = [(None,), (None,), (None, 6), (7,), (1, 9), (None, 1, 9)]
LONGEST = 40
"""Tokens of a sequence at most."""


def random_limits(rng: random.Random) -> StepLimits:
    """Pools that hold the longest sequence alone, and a few pages more."""
    windows = rng.choice(GROUPS)
    page_size = rng.choice([1, 2, 4, 8])
    pages = []
    for window in windows:
        needed = -(-LONGEST // page_size)
        if window is not None and None not in windows:
            needed = min(needed, (window + page_size - 2) // page_size + 1)
        pages.append(1 + needed + rng.choice([0, 1, 2, 4, 8, 30]))
    return small_limits(
        page_size=page_size,
        num_pages=tuple(pages),
        group_windows=windows,
        max_model_len=LONGEST,
        max_num_batched_tokens=24,
        max_num_seqs=10,
        vocab_size=16,
    )


def random_config(rng: random.Random, limits: StepLimits) -> SchedulerConfig:
    policy = rng.choice(["fcfs", "priority", "lpm"])
    budget = rng.choice([1, 4, 8, 16, limits.max_num_batched_tokens])
    return SchedulerConfig(
        max_num_batched_tokens=budget,
        max_num_seqs=rng.choice([1, 3, 6, limits.max_num_seqs]),
        max_logit_rows=rng.randint(1, 12),
        max_prefill_chunk=rng.choice([None, rng.randint(1, budget)]),
        prefill_splits=tuple(rng.sample(range(1, LONGEST), rng.choice([0, 0, 2]))),
        enable_prefix_caching=policy == "lpm" or rng.random() < 0.7,
        scheduling_policy=policy,
        max_overtakes=rng.choice([0, 1, 2, 5, 64]),
        admission=rng.choice(["max_utilization", "max_utilization", "guaranteed_no_evict"]),
    )


def pinned_tokens(pinned: PinnedPrefix) -> list[int]:
    return [token for node in pinned.nodes for token in node.tokens]


class Drive:
    """A scheduler, and all that was ever put into it.

    Attributes:
        num_steps, num_pins: steps and pins that were made.
    """

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.limits = random_limits(self.rng)
        self.config = random_config(self.rng, self.limits)
        self.scheduler = Scheduler(self.limits, self.config)
        self.num_steps = self.num_pins = 0
        self.ends = self.rng.choice([0.0, 0.02, 0.2])  # the chance of a token to be the last
        self.alike = self.rng.choice([0.0, 0.3, 0.9])  # … of a prompt to begin as others do
        self.unfinished: list[Sequence] = []
        self.stored = [np.zeros(n * self.limits.page_size, np.int64) for n in self.limits.num_pages]
        self.marks: dict[int, list[int]] = {}  # by arrival, those of its tokens
        self.pins: list[PinnedPrefix] = []
        self.pinning: Sequence | None = None
        self.begun: set[int] = set()  # arrivals
        self.older: dict[int, int] = {}  # by arrival, how many older ones had not begun
        self.overtaken: Counter[int] = Counter()
        self.given_way: Counter[int] = Counter()
        self.beginnings = [self._tokens(self.rng.randint(1, 30)) for _ in range(2)]

    # -- what happens ----------------------------------------------------------------------

    def run(self, num_steps: int) -> None:
        """Requests come and go for that many steps; then those that are left are served."""
        rate = self.rng.choice([0.2, 0.5, 1.0])
        most = self.rng.choice([3, 12, 40])
        for _ in range(num_steps):
            if self.rng.random() < rate and len(self.unfinished) < most:
                self.arrive()
            if self.rng.random() < 0.05 and self.unfinished:
                self.abort(self.rng.choice(self.unfinished))
            if self.rng.random() < 0.05:
                self.pin_or_unpin()
            self.step(fails=self.rng.random() < 0.03)
        for _ in range(LONGEST * (len(self.unfinished) + 1) * 20):
            if not self.unfinished:
                break
            self.step()
        self.check_end()

    def abort(self, seq: Sequence) -> None:
        if seq is self.pinning:
            self.pinning = None
        self.scheduler.finish(self._forget(seq))
        assert_scheduler_adds_up(self.scheduler, unused_slots=False)

    def pin_or_unpin(self) -> None:
        pins = self.scheduler.blocks.pins
        if pins is None:
            return
        if self.pins and self.rng.random() < 0.5:
            pins.unpin(self.pins.pop(self.rng.randrange(len(self.pins))))
        elif self.pinning is None:
            shared = self.rng.choice(self.beginnings)
            try:
                tokens = pins.check(shared[: self.rng.randint(1, len(shared))])
            except RequestError:
                return
            self.pinning = make_seq(tokens, max_tokens=0)
            self.add(self.pinning)

    def add(self, seq: Sequence) -> None:
        self.scheduler.add(seq)
        self.older[seq.arrival] = sum(s.arrival not in self.begun for s in self.unfinished)
        self.unfinished.append(seq)

    def arrive(self) -> None:
        """One request, of up to three outputs."""
        prompt = self._tokens(self.rng.randint(1, self.rng.choice([4, 20])))
        if self.rng.random() < self.alike:
            shared = self.rng.choice(self.beginnings)
            prompt = shared[: self.rng.randint(1, len(shared))] + prompt
        prompt = prompt[: LONGEST - 1]
        most = LONGEST - len(prompt)
        max_tokens = self.rng.choice([most, self.rng.randint(0, most)])
        priority = self.rng.randint(-2, 2) if self.config.scheduling_policy == "priority" else 0
        for _ in range(self.rng.choice([1, 1, 1, 2, 3])):
            seq = make_seq(prompt, max_tokens=max_tokens, priority=priority)
            if self.rng.random() < 0.1:
                seq.prompt_rows = PromptRows(self.rng.randint(0, len(prompt) - 1))
            self.add(seq)

    def step(self, *, fails: bool = False) -> None:
        """One step; where it fails nothing was computed, and the next one tries again."""
        ran = list(self.scheduler.running)
        schedule = self.scheduler.schedule()
        self.num_steps += 1
        self.check_schedule(ran, schedule.chunks, schedule.preempted)
        if schedule.chunks and self.rng.random() < 0.1:
            check_batch(build_batch(schedule.chunks, self.scheduler.blocks.table), self.limits)
            assert_stats(self.scheduler)
        if not fails:
            for chunk in schedule.chunks:
                self.compute(chunk)
            for chunk in schedule.chunks:
                self.advance(chunk)
        assert_scheduler_adds_up(self.scheduler, unused_slots=not fails)

    def compute(self, chunk: Chunk) -> None:
        """Mark the slots of the chunk, and look at the marks of all that it may see."""
        seq, page_size = chunk.seq, self.limits.page_size
        self._mark(seq)
        marks = np.array(self.marks[seq.arrival][: chunk.end])
        positions = np.arange(chunk.end)
        columns, offsets = np.divmod(positions, page_size)
        for group, window in enumerate(self.limits.group_windows):
            slots = self.scheduler.blocks.table.pages[group, seq.row][columns] * page_size + offsets
            stored = self.stored[group]
            stored[slots[chunk.start :]] = marks[chunk.start :]
            first = 0 if window is None else max(0, chunk.start - window + 1)
            assert slots[first:].min() >= page_size, "a page that is needed is not there"
            assert np.array_equal(stored[slots[first:]], marks[first:]), "others' tokens"

    def _mark(self, seq: Sequence) -> None:
        """A number for each token, made of it and all before it."""
        marks = self.marks.setdefault(seq.arrival, [])
        for token in seq.tokens(len(marks), seq.num_tokens):
            before = marks[-1] if marks else 1
            marks.append((before * 0x5851F42D4C957F2D + token + 1) % (1 << 61))

    def advance(self, chunk: Chunk) -> None:
        """What the engine does after a step."""
        seq = chunk.seq
        self.scheduler.advance(chunk)
        if seq.prompt_rows is not None:
            rows = chunk.prompt_rows
            assert not rows or rows.start == seq.prompt_rows.num_taken
            seq.prompt_rows.num_taken += len(rows)
            if chunk.end >= len(seq.prompt_token_ids):
                assert seq.prompt_rows.num_taken == seq.prompt_rows.end, "a row was never there"
        if chunk.samples:
            seq.output_token_ids.append(self.rng.randrange(2))
        ended = len(seq.output_token_ids) == seq.max_tokens and (
            chunk.samples or seq.num_remaining == 0
        )
        if ended and seq is self.pinning:
            self.pinning = None
            self.scheduler.finish(self._forget(seq))
            assert self.scheduler.blocks.pins is not None
            self.num_pins += 1
            self.pins.append(self.scheduler.blocks.pins.pin(seq.prompt_token_ids))
        elif ended or (chunk.samples and self.rng.random() < self.ends):
            self.scheduler.finish(self._forget(seq))

    # -- what must hold --------------------------------------------------------------------

    def check_schedule(
        self, ran: list[Sequence], chunks: list[Chunk], preempted: list[Sequence]
    ) -> None:
        scheduler = self.scheduler
        assert bool(chunks) == bool(self.unfinished), "no progress"
        assert len(chunks) == len({chunk.seq.arrival for chunk in chunks})
        assert len(scheduler.running) <= scheduler.max_num_seqs
        assert all(1 <= chunk.length <= scheduler.max_prefill_chunk for chunk in chunks)
        assert sum(chunk.length for chunk in chunks) <= scheduler.max_num_batched_tokens
        rows = sum(len(chunk.prompt_rows) + chunk.samples for chunk in chunks)
        assert rows <= scheduler.max_logit_rows
        for chunk in chunks:
            assert chunk.start == chunk.seq.num_computed_tokens
            for split in self.config.prefill_splits:
                assert not chunk.start < split < chunk.end

        served = {chunk.seq.arrival for chunk in chunks}
        gone = {seq.arrival for seq in preempted}
        assert all(seq.arrival in served | gone for seq in ran), "one that runs was left out"
        assert not ran or ran[0].arrival not in gone, "the first in rank always goes on"
        if self.config.admission == "guaranteed_no_evict":
            assert not preempted
        self.check_order(ran, served, preempted)

    def check_order(self, ran: list[Sequence], served: set[int], preempted: list[Sequence]) -> None:
        """Who began, in place of whom."""
        new = sorted(served - self.begun)
        if new:
            assert not self.scheduler.preempted, "a new one began before a preempted one"
        most = self.config.max_overtakes
        for seq in self.unfinished:
            if seq.arrival not in self.begun:
                self.overtaken[seq.arrival] += sum(arrival > seq.arrival for arrival in new)
                if seq.arrival in served:
                    # Of those that began in this very step it may have been the first.
                    self.overtaken[seq.arrival] -= sum(arrival > seq.arrival for arrival in new)
                assert self.overtaken[seq.arrival] <= (self.older[seq.arrival] + 1) * most
        self.begun |= served
        for seq in preempted:
            later = {other.arrival for other in ran if other.arrival > seq.arrival}
            self.given_way[seq.arrival] += bool(later & served)
            assert self.given_way[seq.arrival] <= most

    def check_end(self) -> None:
        """Everything ended, and nothing is held but by the tree."""
        assert not self.unfinished, "it does not come to an end"
        blocks = self.scheduler.blocks
        for pinned in self.pins:
            assert blocks.pins is not None
            assert len(blocks.pins._tree.match(pinned_tokens(pinned))) == len(pinned.nodes)
            blocks.pins.unpin(pinned)
        assert not self.scheduler.waiting
        assert not self.scheduler.running
        assert blocks.num_free == tuple(pool.capacity for pool in blocks.pools)
        if blocks.tree is not None:
            blocks.tree.clear()
            assert blocks.tree.num_nodes == 0
        assert all(pool.num_free == pool.capacity for pool in blocks.pools)
        assert not blocks.table.pages.any()

    def _tokens(self, count: int) -> list[int]:
        return [self.rng.randrange(2) for _ in range(count)]

    def _forget(self, seq: Sequence) -> Sequence:
        self.unfinished.remove(seq)
        return seq
