"""A request on its way in, and what a step says of it on the way out.

Both are plain values, so that the step may run on a thread of its own.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from llmir.engine.outputs import FinishReason, TokenLogprobs
from llmir.engine.prompt_rows import PromptRows
from llmir.engine.sampling_params import SamplingParams
from llmir.engine.structured_output import Grammar


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A prompt that was found fit to be served.

    prompt         its text; None when token ids were given
    max_tokens     output tokens at most, the model's context considered; 0: it is only run
    priority       the lower is served first, under the policy `priority`
    grammar        what the outputs must be, as `params.structured_outputs` says, compiled; the
                   step never compiles, which may take long and fail
    prompt_rows    takes logits of the prompt's positions; None: not wanted
    arrival_time   seconds of `time.monotonic`
    """

    request_id: str
    prompt: str | None = None
    prompt_token_ids: list[int]
    params: SamplingParams
    max_tokens: int
    priority: int = 0
    grammar: Grammar | None = None
    prompt_rows: PromptRows | None = None
    arrival_time: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceUpdate:
    """What a step gave one output of a request.

    token_ids      new tokens; none where the step only ended it
    logprobs       one entry for each of them; None: not asked for
    finish_reason  why the tokens end here, if they do.  That the text has come to a stop string
                   is for the reader to say
    stop_reason    the stop id, if it was one; of an "error", what went wrong
    ended_by_token whether the last token is one that ends outputs, and no part of the text
    """

    request_id: str
    index: int
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    ended_by_token: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What one step did.

    time         when it ended, in seconds of `time.monotonic`
    updates      outputs that got tokens, or ended
    request_ids  requests that had tokens in the step, each once
    begun        of requests that were in a step for the first time, how many tokens of their
                 prompts the prefix tree had
    preempted    requests that lost their pages before it
    """

    time: float
    updates: list[SequenceUpdate]
    request_ids: list[str]
    begun: dict[str, int]
    preempted: list[str]
