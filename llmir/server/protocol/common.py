"""What completions and chat answer with in the same words."""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import TypedDict

FinishReason = Literal["stop", "length", "abort", "error", "tool_calls"]


class PromptTokensDetails(TypedDict):
    cached_tokens: int


class Usage(TypedDict):
    """Numbers of tokens; the prompt's are counted once, however many outputs there are."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class ErrorObject(TypedDict):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(TypedDict):
    """Every error, whatever the address."""

    error: ErrorObject


class PromptLogprob(TypedDict):
    """vLLM's: one candidate for a token of the prompt."""

    logprob: float
    rank: int
    decoded_token: str | None


PromptLogprobs = list[dict[str, PromptLogprob] | None]


ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorResponse, "description": "What is wrong with the request."},
    "5XX": {"model": ErrorResponse, "description": "What the server could not do."},
}
"""For a route's `responses`."""
