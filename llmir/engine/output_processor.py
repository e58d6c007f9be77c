"""From what the steps give to what a caller sees: text, stop strings, times.

Nothing here touches the step: with a thread of its own for that, texts are made while it runs.
A stop string is then noticed when the next token may have been computed already; what comes
after it is dropped, so that an output is the same either way.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from llmir.engine.detokenizer import Detokenizer
from llmir.engine.outputs import (
    CompletionOutput,
    FinishReason,
    RequestMetrics,
    RequestOutput,
    TokenLogprobs,
)
from llmir.engine.prompt_rows import LogprobRows
from llmir.engine.request import Request, SequenceUpdate, StepResult
from llmir.engine.sampling_params import SamplingParams
from llmir.engine.tokenizer import Tokenizer


@dataclass(slots=True, kw_only=True)
class _Output:
    """One output of a request, as far as it has come."""

    index: int
    params: SamplingParams
    detokenizer: Detokenizer | None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    cumulative_logprob: float = 0.0
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None

    def take(self, update: SequenceUpdate) -> bool:
        """Add what a step gave; whether the text ends here though the step does not know."""
        last = len(update.token_ids) - 1
        for place, token_id in enumerate(update.token_ids):
            candidates = None if update.logprobs is None else update.logprobs[place]
            by_token = update.ended_by_token and place == last
            self._add(token_id, candidates, by_token)
            if self.finish_reason is not None:
                break
        by_text = self.finish_reason is not None
        if not by_text and update.finish_reason is not None:
            self.finish_reason, self.stop_reason = update.finish_reason, update.stop_reason
        if self.finish_reason is not None and self.detokenizer is not None:
            stop = self.detokenizer.finish()
            if stop is not None and self.finish_reason == "length":
                self.finish_reason, self.stop_reason = "stop", stop
        return by_text and update.finish_reason is None

    def _add(self, token_id: int, candidates: TokenLogprobs | None, by_token: bool) -> None:
        self.token_ids.append(token_id)
        if candidates is not None:
            if self.logprobs is None:
                self.logprobs = []
            self.logprobs.append(candidates)
            self.cumulative_logprob += candidates[token_id].logprob
        if self.detokenizer is None or (by_token and not self.params.include_stop_str_in_output):
            return
        check = len(self.token_ids) >= self.params.min_tokens
        stop = self.detokenizer.push(token_id, check_stop=check)
        if stop is not None and not by_token:
            self.finish_reason, self.stop_reason = "stop", stop

    def abort(self) -> None:
        """End the output where it is."""
        if self.finish_reason is None:
            self.finish_reason = "abort"
            if self.detokenizer is not None:
                self.detokenizer.finish()

    def output(self) -> CompletionOutput:
        """The output so far; shares nothing with this one."""
        return CompletionOutput(
            index=self.index,
            text="" if self.detokenizer is None else self.detokenizer.text,
            token_ids=list(self.token_ids),
            cumulative_logprob=None if self.logprobs is None else self.cumulative_logprob,
            logprobs=None if self.logprobs is None else list(self.logprobs),
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
        )


@dataclass(slots=True, eq=False, kw_only=True)
class _Request:
    """The outputs of one request, and when things happened to it."""

    request: Request
    outputs: list[_Output]
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    finished_time: float | None = None
    num_preemptions: int = 0
    num_cached_tokens: int | None = None

    @property
    def finished(self) -> bool:
        return all(output.finish_reason is not None for output in self.outputs)

    def output(self) -> RequestOutput:
        request, rows = self.request, self.request.prompt_rows
        return RequestOutput(
            request_id=request.request_id,
            prompt=request.prompt,
            prompt_token_ids=request.prompt_token_ids,
            prompt_logprobs=list(rows.logprobs) if isinstance(rows, LogprobRows) else None,
            outputs=[output.output() for output in self.outputs],
            finished=self.finished,
            num_cached_tokens=self.num_cached_tokens,
            metrics=RequestMetrics(
                arrival_time=request.arrival_time,
                first_scheduled_time=self.first_scheduled_time,
                first_token_time=self.first_token_time,
                finished_time=self.finished_time,
                num_preemptions=self.num_preemptions,
            ),
        )


@dataclass(frozen=True, slots=True)
class Processed:
    """What a step's result came to.

    request_ids  requests that got on in the step
    stopped      (request id, index) of outputs whose text has ended, which the step must be told
    """

    request_ids: list[str]
    stopped: list[tuple[str, int]]


class OutputProcessor:
    """The requests being served, as their callers see them.  Not thread-safe."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._requests: dict[str, _Request] = {}

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._requests

    def __len__(self) -> int:
        return len(self._requests)

    def request_ids(self) -> list[str]:
        """Those that are being served, oldest first."""
        return list(self._requests)

    def add(self, request: Request) -> None:
        """Expect results of a request."""
        assert request.request_id not in self._requests, "a request with this id is being served"
        outputs = [
            _Output(index=i, params=request.params, detokenizer=self._detokenizer(request))
            for i in range(request.params.n)
        ]
        self._requests[request.request_id] = _Request(request=request, outputs=outputs)

    def process(self, result: StepResult) -> Processed:
        """Take in a step's result; those of requests that are not here any more are dropped."""
        for request_id in result.preempted:
            if request_id in self._requests:
                self._requests[request_id].num_preemptions += 1
        for request_id, num_cached_tokens in result.begun.items():
            if request_id in self._requests:
                self._requests[request_id].first_scheduled_time = result.time
                self._requests[request_id].num_cached_tokens = num_cached_tokens
        stopped: list[tuple[str, int]] = []
        for update in result.updates:
            request = self._requests.get(update.request_id)
            if request is None or request.outputs[update.index].finish_reason is not None:
                continue
            if update.token_ids and request.first_token_time is None:
                request.first_token_time = result.time
            if request.outputs[update.index].take(update):
                stopped.append((update.request_id, update.index))
            if request.finished:
                request.finished_time = result.time
        there = [request_id for request_id in result.request_ids if request_id in self._requests]
        return Processed(there, stopped)

    def output(self, request_id: str) -> RequestOutput:
        """The cumulative output of a request; one that has finished is forgotten then."""
        request = self._requests[request_id]
        if request.finished:
            del self._requests[request_id]
        return request.output()

    def is_finished(self, request_id: str) -> bool:
        """Whether nothing more will come of a request."""
        return self._requests[request_id].finished

    def abort(self, request_id: str, now: float) -> RequestOutput | None:
        """End a request where it is; None: there is no such request."""
        request = self._requests.pop(request_id, None)
        if request is None:
            return None
        for output in request.outputs:
            output.abort()
        request.finished_time = request.finished_time or now
        return request.output()

    def _detokenizer(self, request: Request) -> Detokenizer | None:
        params = request.params
        if not params.detokenize or self._tokenizer is None:
            return None
        return Detokenizer(
            self._tokenizer,
            request.prompt_token_ids,
            stop=params.stop_strings,
            include_stop=params.include_stop_str_in_output,
            skip_special_tokens=params.skip_special_tokens,
        )
