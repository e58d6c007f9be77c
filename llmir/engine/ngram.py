"""Speculation without a second model: what followed these tokens the last time?

    … 11 12 13 14 15 … 11 12 13            the last three tokens stood there before:
            └── draft ──┘                   14 15 … are proposed, and verified in one step

Prompt lookup decoding (Saxena, 2023; n-gram speculation in vLLM).  It gains where answers repeat
their prompt or themselves: code that is edited, extraction, summaries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmir.errors import OptionError


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


class NgramProposer:
    """Drafts of one sequence; remembers where each n-gram stood last.

    As many tokens are proposed as the last draft was worth: a draft that was refused makes the
    next one short, for each token costs arithmetic that a CPU has little of.
    """

    def __init__(self, config: NgramConfig) -> None:
        self._config = config
        self._num_tokens = config.num_speculative_tokens
        # [n-gram] where the token after it stands
        self._after: dict[tuple[int, ...], int] = {}
        self._num_indexed = 0

    def propose(self, tokens: Sequence[int], limit: int) -> list[int]:
        """Up to `limit` tokens that may come after `tokens`; none if the end is new.

        tokens: those of the last call, and more.
        """
        sizes = range(self._config.prompt_lookup_max, self._config.prompt_lookup_min - 1, -1)
        count = min(limit, self._num_tokens)
        # The n-grams before the last token; those at the end are looked for, not found.
        for end in range(max(1, self._num_indexed), len(tokens)):
            for size in sizes:
                if size <= end:
                    self._after[tuple(tokens[end - size : end])] = end
        self._num_indexed = len(tokens)
        if count < 1:
            return []
        for size in sizes:
            start = self._after.get(tuple(tokens[-size:])) if size <= len(tokens) else None
            if start is not None:
                return self._copy(tokens, start, count)
        return []

    def learn(self, num_drafted: int, num_accepted: int) -> None:
        """Take note of what became of a draft."""
        if num_accepted == num_drafted:
            self._num_tokens = self._config.num_speculative_tokens
        else:
            self._num_tokens = max(1, num_accepted)

    @staticmethod
    def _copy(tokens: Sequence[int], start: int, count: int) -> list[int]:
        """`count` tokens from `start` on; past the end they go on with the draft itself."""
        draft = list(tokens[start : start + count])
        period = len(tokens) - start
        while len(draft) < count:
            draft.append(draft[len(draft) - period])
        return draft
