"""What becomes of the logits of a prompt's own positions.

Shape legend: R rows that came in one step, V vocabulary.

Row i of a prompt predicts token i + 1.  Rows come in order, chunk by chunk; after a
preemption the positions are computed again, but those already taken are not asked
for a second time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmir.engine.outputs import Logprob, TokenLogprobs
from llmir.engine.sampler import log_normalizer, rank_candidates
from llmir.engine.tokenizer import Tokenizer
from llmir.runtime.base import F32


class PromptRows:
    """Takes the logits of positions 0 … `end` - 1, each once."""

    def __init__(self, end: int) -> None:
        self.end = end
        self.num_taken = 0

    def wanted(self, start: int, end: int) -> range:
        """Those of the positions start … end - 1 whose logits are still wanted."""
        return range(max(start, self.num_taken), max(start, self.num_taken, min(end, self.end)))

    def take(self, logits_RV: F32) -> None:
        """Use the rows of the next R positions."""
        for row_V in logits_RV:
            self._use(self.num_taken, row_V)
            self.num_taken += 1

    def _use(self, position: int, row_V: F32) -> None:
        raise NotImplementedError


class LogprobRows(PromptRows):
    """`prompt_logprobs`: candidates for each position of the prompt but the first."""

    def __init__(self, token_ids: Sequence[int], num_top: int, tokenizer: Tokenizer | None) -> None:
        super().__init__(len(token_ids) - 1)
        self.logprobs: list[TokenLogprobs | None] = [None]
        self._token_ids = token_ids
        self._num_top = num_top
        self._tokenizer = tokenizer

    def _use(self, position: int, row_V: F32) -> None:
        self.logprobs.append(
            token_logprobs(row_V, self._token_ids[position + 1], self._num_top, self._tokenizer)
        )


class ScoreRows(PromptRows):
    """The log-probability of each token given those before it."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        super().__init__(max(0, len(token_ids) - 1))
        self.scores = np.zeros(self.end, np.float32)
        self._token_ids = token_ids

    def _use(self, position: int, row_V: F32) -> None:
        logit = float(row_V[self._token_ids[position + 1]])
        self.scores[position] = logit - log_normalizer(row_V)


class LogitRows(PromptRows):
    """The logits themselves, of every position: what tests compare bit by bit."""

    def __init__(self, num_tokens: int, vocab_size: int) -> None:
        super().__init__(num_tokens)
        self.logits = np.zeros((num_tokens, vocab_size), np.float32)

    def _use(self, position: int, row_V: F32) -> None:
        self.logits[position] = row_V


def token_logprobs(
    row_V: F32, token_id: int, num_top: int, tokenizer: Tokenizer | None
) -> TokenLogprobs:
    """The entry of one position: the actual token, then the `num_top` likeliest (-1: all)."""
    return {
        candidate: Logprob(
            logprob, rank, None if tokenizer is None else tokenizer.token_text(candidate)
        )
        for candidate, logprob, rank in rank_candidates(row_V, token_id, num_top)
    }
