"""All state of one sequence, in one place.

    tokens      [ prompt ………………… | output …… ]
    computed    ├─ in the KV pages ─┤
                0            num_computed_tokens       num_tokens

A sequence is due for sampling when a step computes its last token.  Preemption sets
num_computed_tokens to 0 and gives the pages back; the tokens stay.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from llmir.engine.detokenizer import Detokenizer
from llmir.engine.outputs import CompletionOutput, FinishReason, TokenLogprobs
from llmir.engine.prefix_tree import Node
from llmir.engine.prompt_rows import PromptRows
from llmir.engine.sampler import SampleState


class Status(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    FINISHED = "finished"


@dataclass(slots=True, eq=False, kw_only=True)
class Sequence:
    """One output of a request, or a prompt that is only scored (max_tokens 0).

    request_id, index     output `index` of the request
    prompt_token_ids      shared by the outputs of a request; never changed
    sampling              parameters, tokens so far and random stream; owns the output tokens
    eos_token_ids         ids that end the output without a stop_reason; empty under ignore_eos
    max_tokens            output tokens at most; 0: the prompt is all there is
    priority              the lower goes first, under the policy `priority`
    arrival               its number among all that were queued
    num_overtaken         how often one that came later went before it; see WaitingQueue
    prompt_rows           takes logits of the prompt's positions; None: not wanted
    detokenizer           None: the text stays empty
    row                   its row of the page table; None: it holds no pages
    num_columns           pages from the first position to the last
    first_page            [group] columns before this one fell out of the group's sliding window
    nodes                 the first columns, those that the prefix tree has
    deepest               while it waits: the last column that the tree had of it
    """

    request_id: str
    index: int
    prompt_token_ids: list[int]
    sampling: SampleState
    eos_token_ids: frozenset[int]
    max_tokens: int
    output_token_ids: list[int]
    priority: int = 0
    arrival: int = 0
    num_overtaken: int = 0
    prompt_rows: PromptRows | None = None
    detokenizer: Detokenizer | None = None
    status: Status = Status.WAITING
    num_computed_tokens: int = 0
    row: int | None = None
    num_columns: int = 0
    first_page: list[int] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    deepest: Node | None = None
    logprobs: list[TokenLogprobs] | None = None
    cumulative_logprob: float = 0.0
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    @property
    def num_remaining(self) -> int:
        """Tokens not yet computed."""
        return self.num_tokens - self.num_computed_tokens

    @property
    def finished(self) -> bool:
        return self.status is Status.FINISHED

    def tokens(self, start: int, end: int) -> list[int]:
        """Tokens start … end - 1 of prompt and output."""
        num_prompt = len(self.prompt_token_ids)
        if start >= num_prompt:
            return self.output_token_ids[start - num_prompt : end - num_prompt]
        return self.prompt_token_ids[start:end] + self.output_token_ids[: max(0, end - num_prompt)]

    def append(self, token_id: int, logprobs: TokenLogprobs | None) -> None:
        """Add a sampled token; sets finish_reason when the output ends with it."""
        params = self.sampling.params
        self.output_token_ids.append(token_id)
        if logprobs is not None:
            if self.logprobs is None:
                self.logprobs = []
            self.logprobs.append(logprobs)
            self.cumulative_logprob += logprobs[token_id].logprob
        by_token = token_id in self.eos_token_ids or token_id in params.stop_ids
        if by_token:
            self.finish_reason = "stop"
            self.stop_reason = None if token_id in self.eos_token_ids else token_id
        if self.detokenizer is not None and (not by_token or params.include_stop_str_in_output):
            stop = self.detokenizer.push(
                token_id, check_stop=len(self.output_token_ids) >= params.min_tokens
            )
            if stop is not None and not by_token:
                self.finish_reason, self.stop_reason = "stop", stop
        if self.finish_reason is None and len(self.output_token_ids) >= self.max_tokens:
            self.finish_reason = "length"
        if self.finish_reason is not None and self.detokenizer is not None:
            stop = self.detokenizer.finish()
            if stop is not None and self.finish_reason == "length":
                self.finish_reason, self.stop_reason = "stop", stop

    def abort(self) -> None:
        """End the output where it is."""
        self.finish_reason = "abort"
        if self.detokenizer is not None:
            self.detokenizer.finish()

    def output(self) -> CompletionOutput:
        """The output so far; shares nothing with this sequence."""
        return CompletionOutput(
            index=self.index,
            text="" if self.detokenizer is None else self.detokenizer.text,
            token_ids=list(self.output_token_ids),
            cumulative_logprob=None if self.logprobs is None else self.cumulative_logprob,
            logprobs=None if self.logprobs is None else list(self.logprobs),
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
        )
