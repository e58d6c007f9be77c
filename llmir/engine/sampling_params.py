"""What a request asks of the sampler, with vLLM's field names and defaults."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any

from llmir.engine.structured_output.params import StructuredOutputsParams
from llmir.errors import OptionError, RequestError, UnknownNameError

NOT_IMPLEMENTED = frozenset(
    {
        "allowed_token_ids",
        "bad_words",
        "best_of",
        "early_stopping",
        "extra_args",
        "flat_logprobs",
        "guided_decoding",
        "length_penalty",
        "logits_processors",
        "output_kind",
        "repetition_detection",
        "routed_experts_prompt_start",
        "skip_clone",
        "skip_reading_prefix_cache",
        "spaces_between_special_tokens",
        "thinking_token_budget",
        "truncate_prompt_tokens",
        "use_beam_search",
    }
)
"""Parameters that vLLM has, or had, and llmir does not: refused by name, never ignored."""

LEAST_REPETITION_PENALTY, MOST_REPETITION_PENALTY = 0.01, 100.0
"""Beyond these a logit of a float32 would be lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen and when a request ends.  Immutable; lists become tuples.

    The logits of a step pass, in this order, through: `structured_outputs` (tokens that it
    does not allow are masked), `min_tokens` (those that would stop are), `logit_bias`,
    `repetition_penalty`, `frequency_penalty`, `presence_penalty`; then greedy, or
    `temperature`, `min_p`, `top_k`, `top_p`.

    n                    outputs per prompt; each has a random stream of its own
    temperature          0 is greedy: the most likely token, the lowest id among equals
    top_p                smallest set of tokens whose probability reaches this; 1 is off
    top_k                exactly this many tokens, lower ids first among equals; 0 or -1 is off
    min_p                drop tokens less likely than this share of the likeliest; 0 is off
    repetition_penalty   divides positive and multiplies negative logits of tokens seen in
                         prompt or output; 0.01 … 100, 1 is off
    presence_penalty     subtracted once from tokens seen in the output; -2 … 2
    frequency_penalty    subtracted for each time in the output; -2 … 2
    logit_bias           token id -> value added to its logit, -100 … 100
    seed                 ≥ 0: the same text every time, whatever else is served; None: fresh
    stop                 strings that end the output; the earliest in the text wins, and is
                         cut off unless `include_stop_str_in_output`
    stop_token_ids       ids that end the output, besides the model's EOS ids
    ignore_eos           go on after EOS; with structured_outputs, as long as its form allows
    max_tokens           output tokens at most; None: as many as fit
    min_tokens           no EOS, stop id or stop string before this many tokens.  Text
                         from before is not searched for stop strings.  An output whose
                         form under structured_outputs is complete ends nevertheless
    logprobs             how many candidates' log-probabilities to return with each token's
                         own; -1: all; None: none at all.  From the logits before any change
    prompt_logprobs      the same for the prompt's tokens
    detokenize           False: `text` stays empty
    skip_special_tokens  leave special tokens out of `text`
    structured_outputs   a JSON schema, regex, grammar or list of choices that the output keeps to

    Raises:
        RequestError: a value out of range; the message begins with the parameter's name.
        OptionError: a parameter that llmir does not implement.
    """

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    seed: int | None = None
    stop: str | Iterable[str] | None = None
    stop_token_ids: Iterable[int] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    structured_outputs: StructuredOutputsParams | None = None

    def __new__(cls, **kwargs: Any) -> SamplingParams:
        # A dataclass would answer an unknown keyword with a TypeError that says nothing of
        # why; `__new__` sees the keywords before `__init__` does.
        known = {field.name for field in fields(cls)}
        for name in kwargs:
            if name in NOT_IMPLEMENTED:
                raise OptionError(f"{name} is a sampling parameter that llmir does not implement")
            if name not in known:
                raise UnknownNameError("sampling parameter", name, known)
        return object.__new__(cls)

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        put("n", _integer("n", self.n, low=1))
        for name in ("presence_penalty", "frequency_penalty"):
            put(name, _real(name, getattr(self, name), low=-2.0, high=2.0))
        name, low, high = "repetition_penalty", LEAST_REPETITION_PENALTY, MOST_REPETITION_PENALTY
        put(name, _real(name, self.repetition_penalty, low=low, high=high))
        put("temperature", _real("temperature", self.temperature, low=0.0))
        put("top_p", _real("top_p", self.top_p, above=0.0, high=1.0))
        put("top_k", max(0, _integer("top_k", self.top_k, low=-1)))
        put("min_p", _real("min_p", self.min_p, low=0.0, high=1.0))
        put("logit_bias", _bias(self.logit_bias))
        if self.seed is not None:
            put("seed", _integer("seed", self.seed, low=0))
        put("stop", _strings(self.stop))
        put("stop_token_ids", _ids(self.stop_token_ids))
        if self.max_tokens is not None:
            put("max_tokens", _integer("max_tokens", self.max_tokens, low=1))
        put("min_tokens", _integer("min_tokens", self.min_tokens, low=0))
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(
                f"min_tokens is {self.min_tokens}, more than max_tokens, {self.max_tokens}"
            )
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                put(name, _integer(name, getattr(self, name), low=-1))
        for name in ("include_stop_str_in_output", "ignore_eos", "detokenize"):
            _flag(name, getattr(self, name))
        _flag("skip_special_tokens", self.skip_special_tokens)
        form = self.structured_outputs
        if form is not None and not isinstance(form, StructuredOutputsParams):
            raise RequestError(f"structured_outputs must be StructuredOutputsParams, not {form!r}")
        if self.stop and not self.detokenize:
            raise RequestError("stop needs the text that detokenize=False leaves out")

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0.0

    @property
    def has_penalties(self) -> bool:
        """Whether the tokens so far change the logits."""
        return bool(
            self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1.0
        )

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop`, as it is after validation."""
        assert isinstance(self.stop, tuple)
        return self.stop

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """`stop_token_ids`, as they are after validation."""
        assert isinstance(self.stop_token_ids, tuple)
        return self.stop_token_ids


def _integer(name: str, value: object, *, low: int) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise RequestError(f"{name} must be an integer, not {value!r}") from None
    if number < low:
        raise RequestError(f"{name} must be at least {low}, not {number}")
    return number


def _real(
    name: str,
    value: object,
    *,
    low: float = -math.inf,
    above: float = -math.inf,
    high: float = math.inf,
) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise RequestError(f"{name} must be a number, not {value!r}")
    number = float(value)
    if not math.isfinite(number) or not (low <= number <= high and number > above):
        lower = f"greater than {above:g}" if above > -math.inf else f"at least {low:g}"
        upper = f" and at most {high:g}" if high < math.inf else ""
        raise RequestError(f"{name} must be {lower}{upper}, not {number!r}")
    return number


def _flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise RequestError(f"{name} must be True or False, not {value!r}")


def _bias(value: object) -> dict[int, float] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise RequestError(f"logit_bias must map token ids to numbers, not be {value!r}")
    bias = {}
    for key, amount in value.items():
        # OpenAI's clients send JSON, whose keys are strings.
        token_id = int(key) if isinstance(key, str) and key.isascii() and key.isdigit() else key
        token_id = _integer("logit_bias key", token_id, low=0)
        bias[token_id] = _real(f"logit_bias[{token_id}]", amount, low=-100.0, high=100.0)
    return bias


def _strings(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    strings = (value,) if isinstance(value, str) else value
    if not isinstance(strings, list | tuple) or not all(isinstance(s, str) for s in strings):
        raise RequestError(f"stop must be a string or a list of strings, not {value!r}")
    if "" in strings:
        raise RequestError("stop must not contain the empty string")
    return tuple(strings)


def _ids(value: object) -> tuple[int, ...]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple | set | frozenset):
        raise RequestError(f"stop_token_ids must be a list of token ids, not {value!r}")
    return tuple(_integer("stop_token_ids", token_id, low=0) for token_id in value)
