"""The engine: requests in, steps on a runner, outputs out.

schedule() → build_batch() → runner.step() → sample() → postprocess
"""

from __future__ import annotations

import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np

from llmir.engine.batch import build_batch
from llmir.engine.detokenizer import Detokenizer
from llmir.engine.outputs import RequestMetrics, RequestOutput
from llmir.engine.prompt_rows import LogprobRows, PromptRows, token_logprobs
from llmir.engine.sampler import SampleState, check_choices, sample, sample_top
from llmir.engine.sampling_params import SamplingParams
from llmir.engine.scheduler import Chunk, Scheduler, SchedulerConfig
from llmir.engine.sequence import Sequence
from llmir.engine.structured_output import Constraint, GrammarCompiler, MaskFiller
from llmir.engine.tokenizer import Tokenizer
from llmir.errors import RequestError
from llmir.runtime.base import F32, StepBatch, StepRunner


@dataclass(slots=True, eq=False, kw_only=True)
class _Request:
    """The sequences of one request, and when things happened to it."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    seqs: list[Sequence] = field(default_factory=list)
    arrival_time: float
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    finished_time: float | None = None
    num_preemptions: int = 0

    def output(self) -> RequestOutput:
        rows = self.seqs[0].prompt_rows
        return RequestOutput(
            request_id=self.request_id,
            prompt=self.prompt,
            prompt_token_ids=self.prompt_token_ids,
            prompt_logprobs=list(rows.logprobs) if isinstance(rows, LogprobRows) else None,
            outputs=[seq.output() for seq in self.seqs],
            finished=all(seq.finished for seq in self.seqs),
            metrics=RequestMetrics(
                arrival_time=self.arrival_time,
                first_scheduled_time=self.first_scheduled_time,
                first_token_time=self.first_token_time,
                finished_time=self.finished_time,
                num_preemptions=self.num_preemptions,
            ),
        )


class LLMEngine:
    """Serves any number of requests on one runner.  Not thread-safe.

    Args:
        runner: runs the steps.
        tokenizer: for text, stop strings and the tokens in logprobs; None: token ids alone.
        eos_token_ids: ids that end an answer, besides those of `stop_token_ids`.
        config: what a step may hold; within the runner's limits.
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
        self.grammars = GrammarCompiler(
            tokenizer, self.limits.vocab_size, sorted(self.eos_token_ids)
        )
        self._masks = MaskFiller()
        self._requests: dict[str, _Request] = {}

    # -- the step ------------------------------------------------------------------------

    def step(self) -> list[RequestOutput]:
        """Run one step; returns the cumulative outputs of the requests that got on in it.

        Raises DeviceError when the runner does; nothing is lost then: the step can be
        tried again, or the requests aborted.
        """
        schedule = self.scheduler.schedule()
        for seq in schedule.preempted:
            self._requests[seq.request_id].num_preemptions += 1
        if not schedule.chunks:
            return []
        batch = build_batch(schedule.chunks, self.limits)
        sampling = [chunk.seq for chunk in schedule.chunks if chunk.samples]
        chosen = self._sample_on_device(schedule.chunks, batch)
        if chosen is not None:
            return self._postprocess(schedule.chunks, sampling, chosen, [None] * len(chosen))
        constraints = [seq.sampling.constraint for seq in sampling]
        with self._masks.beside([one for one in constraints if one is not None]):
            logits_LV = self.runner.step(batch)
        sampled_LV = self._split_rows(schedule.chunks, logits_LV)
        tokens = sample(sampled_LV, [seq.sampling for seq in sampling])
        return self._postprocess(schedule.chunks, sampling, tokens, list(sampled_LV))

    def _sample_on_device(self, chunks: Seq[Chunk], batch: StepBatch) -> list[int] | None:
        """Run the step and choose its tokens without whole rows of logits; None: nothing was run,
        for somebody wants them."""
        if any(chunk.seq.prompt_rows is not None for chunk in chunks):
            return None
        states = [chunk.seq.sampling for chunk in chunks if chunk.samples]
        if all(state.is_argmax for state in states):
            return check_choices(self.runner.step_greedy(batch).tolist())
        if all(state.fits(self.runner.top_k, self.limits.vocab_size) for state in states):
            return sample_top(self.runner.step_topk(batch), states)
        return None

    def _split_rows(self, chunks: Seq[Chunk], logits_LV: F32) -> F32:
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

    def _postprocess(
        self,
        chunks: Seq[Chunk],
        sampling: Seq[Sequence],
        tokens: Seq[int | None],
        logits_LV: Seq[F32 | None],
    ) -> list[RequestOutput]:
        """Advance, append tokens, finish what has ended.  Rows are None where no one wants any."""
        now = time.monotonic()
        for chunk in chunks:
            self.scheduler.advance(chunk)
            request = self._requests[chunk.seq.request_id]
            if request.first_scheduled_time is None:
                request.first_scheduled_time = now
            if chunk.seq.max_tokens == 0 and chunk.seq.num_remaining == 0:
                chunk.seq.finish_reason = "length"
                self.scheduler.finish(chunk.seq)
        for seq, token, row_V in zip(sampling, tokens, logits_LV, strict=True):
            if token is None:
                seq.end()
                self.scheduler.finish(seq)
                continue
            num_top = seq.sampling.params.logprobs
            logprobs = None
            if num_top is not None:
                assert row_V is not None, "who wants logprobs gets logits"
                logprobs = token_logprobs(row_V, token, num_top, self.tokenizer)
            seq.append(token, logprobs)
            request = self._requests[seq.request_id]
            if request.first_token_time is None:
                request.first_token_time = now
            if seq.finish_reason is not None:
                self.scheduler.finish(seq)
        touched = dict.fromkeys(chunk.seq.request_id for chunk in chunks)
        return [self._report(self._requests[request_id], now) for request_id in touched]

    def _report(self, request: _Request, now: float) -> RequestOutput:
        if all(seq.finished for seq in request.seqs):
            request.finished_time = now
            del self._requests[request.request_id]
        return request.output()

    # -- requests ------------------------------------------------------------------------

    def has_unfinished_requests(self) -> bool:
        """Whether `step` has anything to do."""
        return bool(self._requests)

    def add_request(
        self,
        request_id: str,
        prompt_token_ids: Seq[int],
        params: SamplingParams,
        *,
        prompt: str | None = None,
    ) -> None:
        """Queue a request; `step` serves it.  Raises RequestError as `check_request`."""
        self._check_id(request_id)
        max_tokens = self.check_request(prompt_token_ids, params)
        token_ids = list(prompt_token_ids)
        rows = None
        if params.prompt_logprobs is not None:
            rows = LogprobRows(token_ids, params.prompt_logprobs, self.tokenizer)
        request = _Request(
            request_id=request_id,
            prompt=prompt,
            prompt_token_ids=token_ids,
            arrival_time=time.monotonic(),
        )
        for index in range(params.n):
            # The first output takes the prompt's rows; they are the same for all.
            prompt_rows = rows if index == 0 else None
            request.seqs.append(self._sequence(request, index, params, max_tokens, prompt_rows))
        self._enqueue(request)

    def add_prompt(self, request_id: str, token_ids: Seq[int], rows: PromptRows) -> None:
        """Queue a prompt that is only run, for the rows of its logits.  Raises RequestError."""
        self._check_id(request_id)
        self._check_prompt(token_ids)
        self._check_fits(len(token_ids), len(token_ids), "")
        request = _Request(
            request_id=request_id,
            prompt=None,
            prompt_token_ids=list(token_ids),
            arrival_time=time.monotonic(),
        )
        params = SamplingParams(temperature=0.0, detokenize=False)
        request.seqs.append(self._sequence(request, 0, params, 0, rows))
        self._enqueue(request)

    def abort(self, request_id: str) -> RequestOutput | None:
        """End a request and free what it holds, at once; None: there is no such request."""
        request = self._requests.pop(request_id, None)
        if request is None:
            return None
        request.finished_time = time.monotonic()
        for seq in request.seqs:
            if not seq.finished:
                seq.abort()
                self.scheduler.finish(seq)
        return request.output()

    def _enqueue(self, request: _Request) -> None:
        self._requests[request.request_id] = request
        for seq in request.seqs:
            self.scheduler.add(seq)

    def _sequence(
        self,
        request: _Request,
        index: int,
        params: SamplingParams,
        max_tokens: int,
        prompt_rows: PromptRows | None,
    ) -> Sequence:
        eos = frozenset() if params.ignore_eos else self.eos_token_ids
        output: list[int] = []
        seed = np.random.SeedSequence(None if params.seed is None else [params.seed, index])
        detokenizer = None
        if params.detokenize and self.tokenizer is not None:
            detokenizer = Detokenizer(
                self.tokenizer,
                request.prompt_token_ids,
                stop=params.stop_strings,
                include_stop=params.include_stop_str_in_output,
                skip_special_tokens=params.skip_special_tokens,
            )
        return Sequence(
            request_id=request.request_id,
            index=index,
            leader=request.seqs[0] if request.seqs else None,
            prompt_token_ids=request.prompt_token_ids,
            sampling=SampleState(
                params=params,
                prompt_token_ids=request.prompt_token_ids,
                output_token_ids=output,
                stop_ids=sorted(eos.union(params.stop_ids)),
                rng=np.random.Generator(np.random.Philox(seed)),
                constraint=self._constraint(params, output),
            ),
            eos_token_ids=eos,
            max_tokens=max_tokens,
            output_token_ids=output,
            prompt_rows=prompt_rows,
            detokenizer=detokenizer,
        )

    def _constraint(self, params: SamplingParams, output: Seq[int]) -> Constraint | None:
        if params.structured_outputs is None:
            return None
        return Constraint(
            self.grammars.compile(params.structured_outputs),
            output,
            eos_ids=sorted(self.eos_token_ids),
            stop_ids=params.stop_ids,
            ignore_eos=params.ignore_eos,
            min_tokens=params.min_tokens,
        )

    # -- what can be served --------------------------------------------------------------

    @property
    def max_model_len(self) -> int:
        """The longest sequence, prompt and output together, that the pools hold alone."""
        capacity = self.scheduler.blocks.capacity_tokens
        longest = self.limits.max_model_len
        # The last token is never fed back, so that it needs no place in a page.
        return longest if capacity is None else min(longest, capacity + 1)

    def check_request(self, prompt_token_ids: Seq[int], params: SamplingParams) -> int:
        """How many tokens the output may have; nothing is queued.

        Raises RequestError: the prompt is empty, holds ids the model does not have, or could
        not be served even alone; a parameter names such an id.
        """
        self._check_prompt(prompt_token_ids)
        self._check_params(params)
        return self._max_tokens(len(prompt_token_ids), params)

    def _check_id(self, request_id: str) -> None:
        if request_id in self._requests:
            raise RequestError(f"a request with the id {request_id!r} is being served")

    def _check_prompt(self, token_ids: Seq[int]) -> None:
        if len(token_ids) == 0:
            raise RequestError("the prompt is empty: it must have at least one token")
        vocab_size = self.limits.vocab_size
        for token_id in token_ids:
            if not 0 <= token_id < vocab_size:
                raise RequestError(
                    f"the prompt has token id {token_id}; the model has 0 … {vocab_size - 1}"
                )

    def _check_params(self, params: SamplingParams) -> None:
        if params.stop and self.tokenizer is None:
            raise RequestError("stop needs a tokenizer, and this model has none")
        if params.structured_outputs is not None:
            self.grammars.compile(params.structured_outputs)
        vocab_size = self.limits.vocab_size
        for name in ("logit_bias", "stop_token_ids"):
            for token_id in getattr(params, name) or ():
                if token_id >= vocab_size:
                    raise RequestError(
                        f"{name} has token id {token_id}; the model has 0 … {vocab_size - 1}"
                    )
        for name in ("logprobs", "prompt_logprobs"):
            if (getattr(params, name) or 0) > vocab_size:
                raise RequestError(
                    f"{name} is {getattr(params, name)}; the model has {vocab_size} tokens"
                )

    def _max_tokens(self, num_prompt: int, params: SamplingParams) -> int:
        """How many tokens the output may have: `max_tokens`, cut to the model's context."""
        longest = self.limits.max_model_len
        if num_prompt >= longest:
            raise RequestError(
                f"the prompt has {num_prompt} tokens and needs room for one more, but the "
                f"model's context (max_model_len) is {longest} tokens"
            )
        self._check_fits(num_prompt, num_prompt, "")
        if params.max_tokens is None:
            max_tokens = self.max_model_len - num_prompt
        else:
            max_tokens = min(params.max_tokens, longest - num_prompt)
            self._check_fits(
                num_prompt,
                num_prompt + max_tokens - 1,
                f" and up to {max_tokens} of output: lower max_tokens",
            )
        if params.min_tokens > max_tokens:
            raise RequestError(
                f"min_tokens is {params.min_tokens}, but only {max_tokens} tokens fit after a "
                f"prompt of {num_prompt}"
            )
        return max_tokens

    def _check_fits(self, num_prompt: int, num_cached: int, what: str) -> None:
        """Refuse what could never be served, however long it waited."""
        if num_prompt > self.limits.max_model_len:
            raise RequestError(
                f"the prompt has {num_prompt} tokens, but the model's context (max_model_len) "
                f"is {self.limits.max_model_len} tokens"
            )
        blocks = self.scheduler.blocks
        capacity = blocks.capacity_tokens
        if capacity is not None and num_cached > capacity:
            page_size = blocks.page_size
            raise RequestError(
                f"a prompt of {num_prompt} tokens{what} needs {-(-num_cached // page_size)} pages "
                f"of {page_size} tokens, but the KV cache has room for {capacity // page_size}: "
                "give the cache more memory"
            )
