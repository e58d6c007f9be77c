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

from llmir.engine.outputs import FinishReason
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
    drafts                tokens proposed to come next; the next step verifies some or all
    row                   its row of the page table; None: it holds no pages
    num_columns           pages from the first position to the last
    first_page            [group] columns before this one fell out of the group's sliding window
    nodes                 the first columns, those that the prefix tree has
    deepest               while it waits: the last column that the tree had of it
    ended_by_token        the last token is one that ends outputs, and no part of the text
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
    status: Status = Status.WAITING
    num_computed_tokens: int = 0
    drafts: list[int] = field(default_factory=list)
    row: int | None = None
    num_columns: int = 0
    first_page: list[int] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    deepest: Node | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    ended_by_token: bool = False

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

    def append(self, token_id: int) -> None:
        """Add a sampled token; sets finish_reason when the output ends with it."""
        self.output_token_ids.append(token_id)
        if token_id in self.eos_token_ids:
            self.finish_reason = "stop"
            self.ended_by_token = True
        elif token_id in self.sampling.params.stop_ids:
            self.finish_reason, self.stop_reason = "stop", token_id
            self.ended_by_token = True
        else:
            self._constrain(token_id)
            if self.finish_reason is None and len(self.output_token_ids) >= self.max_tokens:
                self.finish_reason = "length"

    def end(self) -> None:
        """End the output where it is, for its constraint allows nothing more."""
        assert self.sampling.constraint is not None
        self.finish_reason, self.stop_reason = self.sampling.constraint.finish()

    def _constrain(self, token_id: int) -> None:
        constraint = self.sampling.constraint
        if constraint is not None:
            constraint.accept(token_id)
            if constraint.complete or constraint.failure is not None:
                self.finish_reason, self.stop_reason = constraint.finish()
