"""What comes back for a request, with vLLM's names."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True, slots=True)
class Logprob:
    """One candidate at one position.

    logprob        natural logarithm of its probability, from the unchanged logits
    rank           1 for the most likely; among equals the lower id comes first
    decoded_token  its text, with the leading space that it stands for; None: no tokenizer
    """

    logprob: float
    rank: int
    decoded_token: str | None


TokenLogprobs = dict[int, Logprob]
"""Candidates of one position by token id: the actual token first, then the most likely."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionOutput:
    """One of the `n` outputs of a request, as far as it has come.

    text                what may be shown: text that could be the start of a stop string, or
                        half a character, is held back until it is decided
    token_ids           all output tokens, with the EOS or stop token that ended them
    cumulative_logprob  sum of the tokens' log-probabilities; None unless `logprobs` was asked for
    logprobs            one dict per token; None unless asked for
    finish_reason       None while running; "stop", "length", "abort", or "error": llmir
                        could not go on with this output, and `stop_reason` says why
    stop_reason         the stop string or stop id that ended the output; None for EOS
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None

    def finished(self) -> bool:
        """Whether nothing more will come."""
        return self.finish_reason is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestMetrics:
    """When things happened, in seconds of `time.monotonic`; None: not yet."""

    arrival_time: float
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    finished_time: float | None = None
    num_preemptions: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOutput:
    """A request and its `n` outputs, cumulative.

    prompt             the prompt's text; None when token ids were given
    prompt_logprobs    None unless asked for; else one entry per prompt token, of which the
                       first is None, as nothing precedes it
    finished           whether all outputs are
    num_cached_tokens  prompt tokens that were in the prefix cache; None: not begun yet
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[TokenLogprobs | None] | None
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics
    num_cached_tokens: int | None = None

    def since(self, previous: RequestOutput | None) -> RequestOutput:
        """The same output with only what `previous` did not have yet.

        Shortens text, token_ids and logprobs of each output; cumulative_logprob stays the
        sum over all tokens.
        """
        if previous is None:
            return self
        return replace(
            self,
            outputs=[
                _tail(now, before)
                for now, before in zip(self.outputs, previous.outputs, strict=True)
            ],
        )


def _tail(now: CompletionOutput, before: CompletionOutput) -> CompletionOutput:
    num_tokens = len(before.token_ids)
    return replace(
        now,
        text=now.text[len(before.text) :],
        token_ids=now.token_ids[num_tokens:],
        logprobs=None if now.logprobs is None else now.logprobs[num_tokens:],
    )
