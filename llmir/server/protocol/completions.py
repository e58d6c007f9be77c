"""The bodies of /v1/completions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, NotRequired

from typing_extensions import TypedDict

from llmir.server.protocol.common import FinishReason, PromptLogprobs, Usage
from llmir.server.protocol.fields import Natural, One, Prompt
from llmir.server.protocol.sampling import REFUSED, SamplingFields


class CompletionRequest(SamplingFields):
    """Continue one prompt, or each of several.

    max_tokens   16 by default; 0 computes the prompt alone, for `echo` with `logprobs`
    echo         put the prompt before the text, and its log-probabilities before the output's
    """

    refused: ClassVar[Mapping[str, str]] = {
        **REFUSED,
        "suffix": "llmir has no infilling",
    }

    prompt: Prompt
    max_tokens: Natural | None = None
    logprobs: Natural | None = None
    echo: bool | None = None
    best_of: One = None
    add_special_tokens: bool | None = None


class CompletionLogprobs(TypedDict):
    """For each token: its text, its log-probability, the likeliest candidates', its place."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(TypedDict):
    """One output.  A stream's chunks hold what is new."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: int | str | None
    token_ids: NotRequired[list[int]]
    prompt_token_ids: NotRequired[list[int]]
    prompt_logprobs: NotRequired[PromptLogprobs]


class Completion(TypedDict):
    """The answer, or a chunk of its stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: NotRequired[Usage | None]
