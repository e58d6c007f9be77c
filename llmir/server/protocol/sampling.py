"""The sampling parameters that completions and chat share, and how they become SamplingParams."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar

from pydantic import Field

from llmir.engine import SamplingParams
from llmir.server.protocol.base import RequestModel
from llmir.server.protocol.fields import (
    LogitBias,
    MaybeTokenIds,
    Natural,
    NumOutputs,
    Off,
    Penalty,
    Priority,
    Probability,
    Repetition,
    Seed,
    Stop,
)
from llmir.server.protocol.structured import StructuredFields

REFUSED = {
    "allowed_token_ids": "",
    "bad_words": "",
    "cache_salt": "",
    "guided_decoding_backend": "llmir has one, llguidance",
    "early_stopping": "llmir has no beam search",
    "kv_transfer_params": "",
    "length_penalty": "llmir has no beam search",
    "logits_processors": "",
    "return_tokens_as_token_ids": "ask for return_token_ids",
    "spaces_between_special_tokens": "",
    "truncate_prompt_tokens": "a prompt is never cut",
    "use_beam_search": "llmir has no beam search",
    "vllm_xargs": "",
}
"""vLLM's and OpenAI's parameters that neither endpoint has."""

_SAME = (
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "stop",
    "stop_token_ids",
    "include_stop_str_in_output",
    "ignore_eos",
    "min_tokens",
    "skip_special_tokens",
    "prompt_logprobs",
)
"""Parameters that SamplingParams calls by the same names."""


class StreamOptions(RequestModel):
    """What a stream holds besides the text.

    include_usage           a last chunk with the numbers of tokens, and no choices
    continuous_usage_stats  vLLM's: every chunk has them
    """

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: Off = None


class SamplingFields(StructuredFields):
    """Parameters of the sampler.  What is not given is the model's own default."""

    refused: ClassVar[Mapping[str, str]] = REFUSED

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: NumOutputs | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: LogitBias = None
    seed: Seed | None = None
    stop: Stop = None
    # Without effect by OpenAI's definition.
    user: str | None = None
    # vLLM's.
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Probability | None = None
    repetition_penalty: Repetition | None = None
    stop_token_ids: MaybeTokenIds = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: Natural | None = None
    skip_special_tokens: bool | None = None
    prompt_logprobs: Natural | None = None
    priority: Priority | None = None
    return_token_ids: bool | None = None

    def sampling_params(self, defaults: SamplingParams, **more: Any) -> SamplingParams:
        """The request's parameters, over the model's defaults.

        more: those that the endpoints have their own names or defaults for.

        Raises RequestError, its message beginning with the name of what is wrong.
        """
        given = {name: getattr(self, name) for name in _SAME}
        if self.seed is not None:
            # OpenAI's seeds may be negative; each of them is a seed of its own.
            given["seed"] = self.seed % 2**64
        given = {name: value for name, value in given.items() if value is not None}
        return replace(defaults, **{**given, **more})
