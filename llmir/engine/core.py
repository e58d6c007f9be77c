"""The step loop on token ids alone: no text, no queues of readers.

schedule() → build_batch() → run_step() → choose → update

Whoever drives it (`LLMEngine` in one thread, `AsyncLLM` with a thread for the steps) makes
text of what comes out, with an `OutputProcessor`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as Seq
from dataclasses import asdict

import numpy as np

from llmir.engine.batch import build_batch
from llmir.engine.choices import Choices, run_step
from llmir.engine.ngram import NgramConfig, NgramProposer
from llmir.engine.outputs import TokenLogprobs
from llmir.engine.prompt_rows import token_logprobs
from llmir.engine.request import Request, SequenceUpdate, StepResult
from llmir.engine.sampler import SampleState
from llmir.engine.scheduler import Chunk, Scheduler, SchedulerConfig
from llmir.engine.sequence import Sequence
from llmir.engine.stats import EngineStats, StepSeconds
from llmir.engine.structured_output import Constraint, GrammarCompiler, MaskFiller
from llmir.engine.tokenizer import Tokenizer
from llmir.errors import DeviceError
from llmir.runtime.base import StepRunner


class EngineCore:
    """Serves any number of requests on one runner.  Not thread-safe.

    Args:
        runner: runs the steps.
        tokenizer: for the tokens in logprobs; None: they have no text.
        eos_token_ids: ids that end an answer, besides those of `stop_token_ids`.
        config: what a step may hold; within the runner's limits.
        speculation: how tokens are proposed, which are then verified several in one step; None:
            not at all.

    Attributes:
        in_step: the requests of the last step that was begun.
        grammars: compiles those of structured outputs, for who makes requests; may be used from
            any thread.
    """

    def __init__(
        self,
        runner: StepRunner,
        tokenizer: Tokenizer | None,
        *,
        eos_token_ids: Seq[int] = (),
        config: SchedulerConfig | None = None,
        speculation: NgramConfig | None = None,
    ) -> None:
        self.runner = runner
        self.limits = runner.limits
        self.tokenizer = tokenizer
        self.eos_token_ids = frozenset(i for i in eos_token_ids if i < self.limits.vocab_size)
        self.scheduler = Scheduler(self.limits, config)
        self.grammars = GrammarCompiler(
            tokenizer, self.limits.vocab_size, sorted(self.eos_token_ids)
        )
        self._masks = MaskFiller()
        self.in_step: list[str] = []
        self._seqs: dict[str, list[Sequence]] = {}
        self._begun: set[str] = set()
        self._seconds = StepSeconds()
        self._num_steps = 0
        self._num_batched_tokens = 0
        self._prompt_tokens = 0
        self._generation_tokens = 0
        self._speculation = speculation
        self._proposers: dict[Sequence, NgramProposer] = {}
        self._num_drafts = 0
        self._num_draft_tokens = 0
        self._num_accepted_tokens = 0

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
        choices = run_step(self.runner, schedule.chunks, batch, self._masks)
        ran = time.perf_counter()
        tokens = self._choose(schedule.chunks, choices)
        sampled = time.perf_counter()
        result = StepResult(
            time=time.monotonic(),
            begun=self._begin(schedule.chunks),
            updates=self._update(schedule.chunks, tokens, choices),
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

    @staticmethod
    def _choose(chunks: Seq[Chunk], choices: Choices) -> Seq[int | None]:
        """The next token of each chunk that samples; of one with drafts, the first of several."""
        rows: list[int] = []
        row = 0
        sampling = [chunk for chunk in chunks if chunk.samples]
        for chunk in sampling:
            rows.append(row)
            row += 1 + len(chunk.drafts)
        return choices.choose(rows, [chunk.seq.sampling for chunk in sampling]) if rows else []

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
        self, chunks: Seq[Chunk], tokens: Seq[int | None], choices: Choices
    ) -> list[SequenceUpdate]:
        """Append tokens, advance, finish what has ended."""
        updates: list[SequenceUpdate] = []
        firsts = iter(tokens)
        row = 0
        for chunk in chunks:
            seq = chunk.seq
            if chunk.samples:
                new = self._append(chunk, next(firsts), row, choices)
                logprobs = self._logprobs(seq, new, row, choices)
                row += 1 + len(chunk.drafts)
                self.scheduler.advance(chunk)
                updates.append(self._update_of(seq, new, logprobs))
                self._generation_tokens += len(new)
            else:
                self.scheduler.advance(chunk)
                if seq.max_tokens == 0 and seq.num_remaining == 0:
                    seq.finish_reason = "length"
                    updates.append(self._update_of(seq, [], None))
        return updates

    def _append(self, chunk: Chunk, token: int | None, row: int, choices: Choices) -> list[int]:
        """Add the chosen token, and those after it as long as the drafts are what is chosen.

        Each is chosen as it would be without drafts, after all that came before it, so that
        they change nothing but the number of steps (Leviathan et al., 2023, for drafts that
        are certain of themselves).
        """
        seq, drafts = chunk.seq, chunk.drafts
        new: list[int] = []
        while token is not None:
            seq.append(token)
            new.append(token)
            if seq.finish_reason is not None or drafts[len(new) - 1 : len(new)] != [token]:
                break
            try:
                (token,) = choices.choose([row + len(new)], [seq.sampling])
            except DeviceError:
                break  # what was chosen so far stands; the next step says it of this row
        if token is None:
            seq.end()
        num_accepted = max(0, len(new) - 1)
        if drafts:
            chunk.refuse(len(drafts) - num_accepted)
            self._num_drafts += 1
            self._num_draft_tokens += len(drafts)
            self._num_accepted_tokens += num_accepted
        proposer = self._proposers.get(seq)
        if proposer is not None:
            if drafts:
                proposer.learn(len(drafts), num_accepted)
            self._speculate(seq, proposer, new)
        return new

    @staticmethod
    def _speculate(seq: Sequence, proposer: NgramProposer, new: list[int]) -> None:
        """Propose what comes next in `seq`."""
        proposer.extend(new)
        # The last token of an output is never fed back.
        seq.drafts = proposer.propose(seq.max_tokens - len(seq.output_token_ids) - 1)

    def _logprobs(
        self, seq: Sequence, new: Seq[int], row: int, choices: Choices
    ) -> list[TokenLogprobs] | None:
        num_top = seq.sampling.params.logprobs
        if num_top is None:
            return None
        found = []
        for place, token in enumerate(new):
            row_V = choices.logits(row + place)
            assert row_V is not None, "who wants logprobs gets logits"
            found.append(token_logprobs(row_V, token, num_top, self.tokenizer))
        return found

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
            ended_by_token=seq.ended_by_token,
        )

    # -- requests ------------------------------------------------------------------------

    def has_unfinished_requests(self) -> bool:
        """Whether `step` has anything to do."""
        return bool(self._seqs)

    def add(self, request: Request) -> None:
        """Queue a request, which was checked; `step` serves it."""
        assert request.request_id not in self._seqs, "a request with this id is being served"
        seqs = [self._sequence(request, index) for index in range(request.params.n)]
        proposers: dict[Sequence, NgramProposer] = {}
        if self._speculation is not None and request.max_tokens > 0:
            for seq in seqs:
                proposers[seq] = NgramProposer(self._speculation)
                proposers[seq].extend(request.prompt_token_ids)
        # All that may fail lies behind.
        self._seqs[request.request_id] = seqs
        self._proposers.update(proposers)
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
        self._proposers.pop(seq, None)
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
                constraint=self._constraint(request, output),
            ),
            eos_token_ids=eos,
            max_tokens=request.max_tokens,
            output_token_ids=output,
            # The first output takes the prompt's rows; they are the same for all.
            prompt_rows=request.prompt_rows if index == 0 else None,
        )

    def _constraint(self, request: Request, output: Seq[int]) -> Constraint | None:
        params = request.params
        if request.grammar is None:
            assert params.structured_outputs is None, "requests bring their grammar"
            return None
        return Constraint(
            request.grammar,
            output,
            eos_ids=sorted(self.eos_token_ids),
            stop_ids=params.stop_ids,
            ignore_eos=params.ignore_eos,
            min_tokens=params.min_tokens,
        )

    # -- numbers -------------------------------------------------------------------------

    def stats(self) -> EngineStats:
        """What there is to know of the engine now; may be asked from another thread."""
        return EngineStats(
            **asdict(self.scheduler.stats()),
            num_steps=self._num_steps,
            num_batched_tokens=self._num_batched_tokens,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generation_tokens,
            num_drafts=self._num_drafts,
            num_draft_tokens=self._num_draft_tokens,
            num_accepted_tokens=self._num_accepted_tokens,
            seconds=StepSeconds(**asdict(self._seconds)),
        )
