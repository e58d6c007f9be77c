"""The step loop on token ids alone: no text, no queues of readers.

schedule() → build_batch() → runner.step() → sample() → update

Whoever drives it (`LLMEngine` in one thread, `AsyncLLM` with a thread for the steps) makes
text of what comes out, with an `OutputProcessor`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as Seq
from dataclasses import asdict

import numpy as np

from llmir.engine.batch import build_batch
from llmir.engine.outputs import TokenLogprobs
from llmir.engine.prompt_rows import token_logprobs
from llmir.engine.request import Request, SequenceUpdate, StepResult
from llmir.engine.sampler import SampleState, check_choices, sample, sample_top
from llmir.engine.scheduler import Chunk, Scheduler, SchedulerConfig
from llmir.engine.sequence import Sequence
from llmir.engine.stats import EngineStats, StepSeconds
from llmir.engine.tokenizer import Tokenizer
from llmir.runtime.base import F32, StepBatch, StepRunner


class EngineCore:
    """Serves any number of requests on one runner.  Not thread-safe.

    Args:
        runner: runs the steps.
        tokenizer: for the tokens in logprobs; None: they have no text.
        eos_token_ids: ids that end an answer, besides those of `stop_token_ids`.
        config: what a step may hold; within the runner's limits.

    Attributes:
        in_step: the requests of the last step that was begun.
    """

    def __init__(
        self,
        runner: StepRunner,
        tokenizer: Tokenizer | None,
        *,
        eos_token_ids: Seq[int] = (),
        config: SchedulerConfig | None = None,
    ) -> None:
        self.runner = runner
        self.limits = runner.limits
        self.tokenizer = tokenizer
        self.eos_token_ids = frozenset(i for i in eos_token_ids if i < self.limits.vocab_size)
        self.scheduler = Scheduler(self.limits, config)
        self.in_step: list[str] = []
        self._seqs: dict[str, list[Sequence]] = {}
        self._begun: set[str] = set()
        self._seconds = StepSeconds()
        self._num_steps = 0
        self._num_batched_tokens = 0
        self._prompt_tokens = 0
        self._generation_tokens = 0

    # -- the step ------------------------------------------------------------------------

    def step(self) -> StepResult | None:
        """Run one step; None: there was nothing to run.

        Raises DeviceError when the runner does; nothing is lost then: the step can be
        tried again, or the requests `in_step` aborted.
        """
        start = time.perf_counter()
        self.in_step = []
        schedule = self.scheduler.schedule()
        preempted = [seq.request_id for seq in schedule.preempted]
        if not schedule.chunks:
            return None
        self.in_step = list(dict.fromkeys(chunk.seq.request_id for chunk in schedule.chunks))
        scheduled = time.perf_counter()
        batch = build_batch(schedule.chunks, self.scheduler.blocks.table)
        built = time.perf_counter()
        sampling = [chunk.seq for chunk in schedule.chunks if chunk.samples]
        tokens, rows, ran = self._run(schedule.chunks, batch, sampling)
        sampled = time.perf_counter()
        result = StepResult(
            time=time.monotonic(),
            begun=self._begin(schedule.chunks),
            updates=self._update(schedule.chunks, sampling, tokens, rows),
            request_ids=self.in_step,
            preempted=preempted,
        )
        self._num_steps += 1
        self._num_batched_tokens += len(batch.token_ids)
        seconds = self._seconds
        seconds.schedule += scheduled - start
        seconds.build += built - scheduled
        seconds.run += ran - built
        seconds.sample += sampled - ran
        seconds.update += time.perf_counter() - sampled
        return result

    def _run(
        self, chunks: Seq[Chunk], batch: StepBatch, sampling: Seq[Sequence]
    ) -> tuple[list[int], Seq[F32 | None], float]:
        """The sampled tokens, the rows of logits they come from (None: nobody wants them), and
        when the runner was done.

        Whole rows of logits leave the device only where somebody wants them.
        """
        states = [seq.sampling for seq in sampling]
        none = [None] * len(states)
        if all(chunk.seq.prompt_rows is None for chunk in chunks):
            if all(state.is_argmax for state in states):
                chosen = self.runner.step_greedy(batch)
                ran = time.perf_counter()
                return check_choices(chosen.tolist()), none, ran
            if all(state.fits(self.runner.top_k, self.limits.vocab_size) for state in states):
                top = self.runner.step_topk(batch)
                ran = time.perf_counter()
                return sample_top(top, states), none, ran
        logits_LV = self.runner.step(batch)
        ran = time.perf_counter()
        sampled_LV = _split_rows(chunks, logits_LV)
        return sample(sampled_LV, states), list(sampled_LV), ran

    def _begin(self, chunks: Seq[Chunk]) -> dict[str, int]:
        """Cached tokens of the requests that are in a step for the first time."""
        begun: dict[str, int] = {}
        for chunk in chunks:
            request_id = chunk.seq.request_id
            if request_id not in self._begun:
                self._begun.add(request_id)
                begun[request_id] = chunk.start
                self._prompt_tokens += len(chunk.seq.prompt_token_ids)
        return begun

    def _update(
        self,
        chunks: Seq[Chunk],
        sampling: Seq[Sequence],
        tokens: Seq[int],
        rows: Seq[F32 | None],
    ) -> list[SequenceUpdate]:
        """Advance, append tokens, finish what has ended."""
        updates: list[SequenceUpdate] = []
        for chunk in chunks:
            self.scheduler.advance(chunk)
            if chunk.seq.max_tokens == 0 and chunk.seq.num_remaining == 0:
                chunk.seq.finish_reason = "length"
                updates.append(self._update_of(chunk.seq, [], None))
        for seq, token, row_V in zip(sampling, tokens, rows, strict=True):
            num_top = seq.sampling.params.logprobs
            logprobs = None
            if num_top is not None:
                assert row_V is not None, "who wants logprobs gets logits"
                logprobs = [token_logprobs(row_V, token, num_top, self.tokenizer)]
            seq.append(token)
            updates.append(self._update_of(seq, [token], logprobs))
        self._generation_tokens += len(tokens)
        return updates

    def _update_of(
        self, seq: Sequence, token_ids: list[int], logprobs: list[TokenLogprobs] | None
    ) -> SequenceUpdate:
        if seq.finish_reason is not None:
            self._finish(seq)
        return SequenceUpdate(
            request_id=seq.request_id,
            index=seq.index,
            token_ids=token_ids,
            logprobs=logprobs,
            finish_reason=seq.finish_reason,
            stop_reason=seq.stop_reason,
        )

    # -- requests ------------------------------------------------------------------------

    def has_unfinished_requests(self) -> bool:
        """Whether `step` has anything to do."""
        return bool(self._seqs)

    def add(self, request: Request) -> None:
        """Queue a request, which was checked; `step` serves it."""
        assert request.request_id not in self._seqs, "a request with this id is being served"
        seqs: list[Sequence] = []
        for index in range(request.params.n):
            seqs.append(self._sequence(request, index))
        self._seqs[request.request_id] = seqs
        for seq in seqs:
            self.scheduler.add(seq)

    def abort(self, request_id: str) -> bool:
        """End a request and free what it holds, at once; False: there is no such request."""
        seqs = self._seqs.get(request_id)
        if seqs is None:
            return False
        for seq in seqs:
            self._end(seq)
        return True

    def stop(self, request_id: str, index: int) -> None:
        """End one output, whose text has come to its end, unless it has ended already."""
        seqs = self._seqs.get(request_id)
        if seqs is not None:
            self._end(seqs[index])

    def _end(self, seq: Sequence) -> None:
        if not seq.finished:
            seq.finish_reason = "abort"
            self._finish(seq)

    def _finish(self, seq: Sequence) -> None:
        self.scheduler.finish(seq)
        if all(other.finished for other in self._seqs[seq.request_id]):
            del self._seqs[seq.request_id]
            self._begun.discard(seq.request_id)

    def _sequence(self, request: Request, index: int) -> Sequence:
        params = request.params
        eos = frozenset() if params.ignore_eos else self.eos_token_ids
        output: list[int] = []
        seed = np.random.SeedSequence(None if params.seed is None else [params.seed, index])
        return Sequence(
            request_id=request.request_id,
            index=index,
            priority=request.priority,
            prompt_token_ids=request.prompt_token_ids,
            sampling=SampleState(
                params=params,
                prompt_token_ids=request.prompt_token_ids,
                output_token_ids=output,
                stop_ids=sorted(eos.union(params.stop_ids)),
                rng=np.random.Generator(np.random.Philox(seed)),
            ),
            eos_token_ids=eos,
            max_tokens=request.max_tokens,
            output_token_ids=output,
            # The first output takes the prompt's rows; they are the same for all.
            prompt_rows=request.prompt_rows if index == 0 else None,
        )

    # -- numbers -------------------------------------------------------------------------

    def stats(self) -> EngineStats:
        """What there is to know of the engine now; may be asked from another thread."""
        scheduler = self.scheduler
        blocks = scheduler.blocks
        usage = max(
            1 - free / pool.capacity
            for free, pool in zip(blocks.num_free, blocks.pools, strict=True)
        )
        return EngineStats(
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
            kv_cache_usage=usage,
            prefix_cache_queries=blocks.num_queried_tokens,
            prefix_cache_hits=blocks.num_hit_tokens,
            num_preemptions=scheduler.num_preemptions,
            num_steps=self._num_steps,
            num_batched_tokens=self._num_batched_tokens,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generation_tokens,
            seconds=StepSeconds(**asdict(self._seconds)),
        )


def _split_rows(chunks: Seq[Chunk], logits_LV: F32) -> F32:
    """Give prompt rows to who wants them; returns the rows that are sampled from."""
    if all(chunk.seq.prompt_rows is None for chunk in chunks):
        return logits_LV
    rows: list[int] = []
    taken = 0
    for chunk in chunks:
        wanted = len(chunk.prompt_rows)
        if chunk.seq.prompt_rows is not None:
            chunk.seq.prompt_rows.take(logits_LV[taken : taken + wanted])
        taken += wanted
        if chunk.samples:
            rows.append(taken)
            taken += 1
    return logits_LV[rows]
