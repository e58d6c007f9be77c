"""Speculation without a second model: what followed these tokens the last time?

    … 11 12 13 14 15 … 11 12 13            the last three tokens stood there before:
            └── draft ──┘                   14 15 … are proposed, and verified in one step

Prompt lookup decoding (Saxena, 2023; n-gram speculation in vLLM).  It gains where answers repeat
their prompt or themselves: code that is edited, extraction, summaries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from llmir.errors import OptionError, UnknownNameError


@dataclass(frozen=True, slots=True, kw_only=True)
class NgramConfig:
    """How tokens are proposed, with vLLM's names.

    num_speculative_tokens   proposed for a step at most
    prompt_lookup_max        tokens at the end that must have stood somewhere before: tried first,
    prompt_lookup_min        … and fewer, down to this many

    Raises OptionError: a number below 1, or more at least than at most.
    """

    num_speculative_tokens: int = 4
    prompt_lookup_max: int = 4
    prompt_lookup_min: int = 2

    def __post_init__(self) -> None:
        for name in ("num_speculative_tokens", "prompt_lookup_max", "prompt_lookup_min"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise OptionError(f"{name} must be a positive whole number; got {value!r}")
        if self.prompt_lookup_min > self.prompt_lookup_max:
            raise OptionError(
                f"prompt_lookup_min is {self.prompt_lookup_min}, more than prompt_lookup_max, "
                f"{self.prompt_lookup_max}"
            )


def parse_speculation(given: Mapping[str, Any]) -> NgramConfig:
    """vLLM's `speculative_config`: {"method": "ngram", "num_speculative_tokens": 4, …}.

    Raises OptionError: another method, an unknown name, or as NgramConfig.
    """
    if not isinstance(given, Mapping):
        raise OptionError(f"speculative_config must be a mapping, not {type(given).__name__}")
    options = dict(given)
    method = options.pop("method", None)
    if method != "ngram":
        raise OptionError(f"speculative_config: the method must be 'ngram', not {method!r}")
    known = [field.name for field in fields(NgramConfig)]
    for name in options:
        if name not in known:
            raise UnknownNameError("name in speculative_config", name, ["method", *known])
    return NgramConfig(**options)


class NgramProposer:
    """Drafts of one sequence; remembers where each n-gram stood last.

    As many tokens are proposed as the last draft was worth: a draft that was refused makes the
    next one short, for each token costs arithmetic that a CPU has little of.
    """

    def __init__(self, config: NgramConfig) -> None:
        self._config = config
        self._sizes = range(config.prompt_lookup_max, config.prompt_lookup_min - 1, -1)
        self._num_tokens = config.num_speculative_tokens
        self._tokens: list[int] = []
        # [n-gram] where the token after it stands
        self._after: dict[tuple[int, ...], int] = {}

    def extend(self, token_ids: Sequence[int]) -> None:
        """Add the sequence's next tokens."""
        for token_id in token_ids:
            # The n-grams that end here have something after them now.
            end = len(self._tokens)
            for size in self._sizes:
                if 0 < size <= end:
                    self._after[tuple(self._tokens[end - size :])] = end
            self._tokens.append(token_id)

    def propose(self, limit: int) -> list[int]:
        """Up to `limit` tokens that may come next; none if the end is new."""
        count = min(limit, self._num_tokens)
        if count < 1:
            return []
        for size in self._sizes:
            start = self._after.get(tuple(self._tokens[-size:]))
            if start is not None and size <= len(self._tokens):
                return self._copy(start, count)
        return []

    def learn(self, num_drafted: int, num_accepted: int) -> None:
        """Take note of what became of a draft."""
        if num_accepted == num_drafted:
            self._num_tokens = self._config.num_speculative_tokens
        else:
            self._num_tokens = max(1, num_accepted)

    def _copy(self, start: int, count: int) -> list[int]:
        """`count` tokens from `start` on; past the end they go on with the draft itself."""
        draft = self._tokens[start : start + count]
        period = len(self._tokens) - start
        while len(draft) < count:
            draft.append(draft[len(draft) - period])
        return draft
