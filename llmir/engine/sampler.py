"""From logits to tokens.

Shape legend: L rows, V vocabulary, C candidates, k largest logits of a row.

Each row is worked on alone, in one order of operations, so that a sequence's tokens
do not depend on what else is in the batch.  Only plain greedy rows, where nothing
can depend on neighbours, are taken together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmir.engine.sampling_params import SamplingParams
from llmir.engine.structured_output import Constraint
from llmir.errors import DeviceError
from llmir.runtime.base import F32, TopLogits

MIN_TEMPERATURE = 1e-20
"""Below this a float32 quotient is 0 or infinite anyway."""

NUCLEUS_START = 256
"""Candidates sorted at first for top_p; nearly always enough, and sorting V is slow."""


@dataclass(slots=True, kw_only=True)
class SampleState:
    """What the choice of a sequence's next token depends on, besides its logits.

    stop_ids: tokens that would end the output; masked while it is shorter than min_tokens.
    constraint: what the output may go on with; None: anything.
    """

    params: SamplingParams
    prompt_token_ids: Sequence[int]
    output_token_ids: Sequence[int]
    stop_ids: Sequence[int]
    rng: np.random.Generator
    constraint: Constraint | None = None

    @property
    def masks_stop_ids(self) -> bool:
        """Whether it is too early for the output to end.  A constraint sees to that itself."""
        early = len(self.output_token_ids) < self.params.min_tokens
        return early and bool(self.stop_ids) and self.constraint is None

    @property
    def keeps_logits(self) -> bool:
        """Whether the logits are used as they come."""
        params = self.params
        return not (self.masks_stop_ids or params.logit_bias or params.has_penalties)

    @property
    def is_argmax(self) -> bool:
        """Whether the token is the likeliest, and nothing else is asked of the logits."""
        if self.constraint is not None:
            return False
        return self.params.greedy and self.keeps_logits and self.params.logprobs is None

    def fits(self, top_k: int, vocab_size: int) -> bool:
        """Whether the `top_k` largest logits hold all that the choice depends on.

        A request's own top_k that cuts nothing off leaves the candidates in another order.
        """
        params = self.params
        if self.constraint is not None or params.logprobs is not None or top_k == 0:
            return False
        if not self.keeps_logits:
            return False
        cuts = 0 < params.top_k <= top_k and params.top_k < vocab_size
        return params.greedy or (cuts and params.min_p == 0.0)


def check_choices(tokens: Sequence[int]) -> list[int]:
    """Tokens that a device chose.  Raises DeviceError as `sample`, where one is -1."""
    bad = sum(token < 0 for token in tokens)
    if bad:
        raise DeviceError(f"{bad} of {len(tokens)} rows of logits have no finite maximum")
    return [int(token) for token in tokens]


def sample(logits_LV: F32, states: Sequence[SampleState]) -> list[int | None]:
    """The next token of each row; draws one number from the generator of each random row.

    None where the row's constraint allows nothing: the output ends before it.

    Raises:
        DeviceError: a row has no finite maximum: the device computed NaN or infinity.
    """
    if not states:
        return []
    assert logits_LV.shape[0] == len(states)
    best = logits_LV.argmax(axis=1)
    finite = np.isfinite(logits_LV[np.arange(len(states)), best])
    if not finite.all():
        raise DeviceError(
            f"{int((~finite).sum())} of {len(states)} rows of logits have no finite maximum"
        )
    tokens: list[int | None] = []
    for row_V, token, state in zip(logits_LV, best, states, strict=True):
        if state.constraint is not None:
            tokens.append(sample_allowed(row_V, state, state.constraint))
            continue
        if not state.keeps_logits:
            row_V = adjust(row_V, state)
            token = row_V.argmax()
        if not state.params.greedy:
            token = draw(row_V, state.params, state.rng.random())
        tokens.append(int(token))
    return tokens


def sample_top(top: TopLogits, states: Sequence[SampleState]) -> list[int]:
    """The next token of each row, the same as `sample` gives of all logits.

    Every state `fits`.  Raises DeviceError as `sample`.
    """
    best = check_choices(top.token_ids[:, 0].tolist())
    tokens = []
    for values_k, ids_k, token, state in zip(top.values, top.token_ids, best, states, strict=True):
        if not state.params.greedy:
            token = int(ids_k[draw(values_k, state.params, state.rng.random())])
        tokens.append(token)
    return tokens


def sample_allowed(row_V: F32, state: SampleState, constraint: Constraint) -> int | None:
    """The next token of a constrained row, as if others' logits were -inf; None: there is none."""
    ids_A = constraint.allowed(len(row_V))
    if len(ids_A) == 0:
        return None
    if not state.keeps_logits:
        row_V = adjust(row_V, state)
    # Fewer numbers than V in what follows, and often very few.
    row_A = row_V[ids_A]
    chosen = int(row_A.argmax())
    if not np.isfinite(row_A[chosen]):
        # Of this row alone: the others' generators have been drawn from.
        constraint.failure = "every token that the grammar allows has a logit of -inf"
        return None
    if not state.params.greedy:
        chosen = draw(row_A, state.params, state.rng.random())
    return int(ids_A[chosen])


def adjust(row_V: F32, state: SampleState) -> F32:
    """A copy of `row_V` after min_tokens, logit_bias and the penalties."""
    params = state.params
    row_V = row_V.copy()
    if state.masks_stop_ids:
        row_V[list(state.stop_ids)] = -np.inf
    if params.logit_bias:
        row_V[list(params.logit_bias)] += np.array(list(params.logit_bias.values()), np.float32)
    if params.has_penalties:
        output, counts = np.unique(np.array(state.output_token_ids, np.int64), return_counts=True)
        if params.repetition_penalty != 1.0:
            seen = np.union1d(output, np.array(state.prompt_token_ids, np.int64))
            penalty = np.float32(params.repetition_penalty)
            values = row_V[seen]
            row_V[seen] = np.where(values > 0, values / penalty, values * penalty)
        row_V[output] -= np.float32(params.frequency_penalty) * counts.astype(np.float32)
        row_V[output] -= np.float32(params.presence_penalty)
    return row_V


def draw(row_V: F32, params: SamplingParams, uniform: float) -> int:
    """The token that `uniform` in [0, 1) picks after temperature, min_p, top_k and top_p."""
    ids_C, weights_C = candidates(row_V, params)
    cumulative_C = np.cumsum(weights_C, dtype=np.float64)
    chosen = int(np.searchsorted(cumulative_C, uniform * cumulative_C[-1], side="right"))
    if chosen == len(ids_C):  # the product was rounded up to the sum
        chosen = int(np.flatnonzero(weights_C)[-1])
    return int(ids_C[chosen])


def candidates(row_V: F32, params: SamplingParams) -> tuple[NDArray[np.int64], F32]:
    """Tokens that may be drawn and their weights, which are not normalised; the best has 1."""
    with np.errstate(over="ignore"):  # far below the best: -inf, whose weight is 0
        # The maximum is subtracted first, so that no exponent is above 0.
        scaled_V = (row_V - row_V.max()) / np.float32(max(params.temperature, MIN_TEMPERATURE))
    weights_V = np.exp(scaled_V)
    ids_C = np.arange(len(row_V))
    if params.min_p > 0.0:
        ids_C = ids_C[weights_V >= params.min_p]
    if 0 < params.top_k < len(ids_C):
        ids_C = ids_C[top_ids(row_V[ids_C], params.top_k)]
    if params.top_p < 1.0:
        ids_C = ids_C[nucleus(row_V[ids_C], weights_V[ids_C], params.top_p)]
    return ids_C, weights_V[ids_C]


def nucleus(logits_C: F32, weights_C: F32, top_p: float) -> NDArray[np.int64]:
    """Indices of the fewest likeliest candidates whose share of the weight reaches `top_p`."""
    wanted = top_p * weights_C.sum(dtype=np.float64)
    size = min(NUCLEUS_START, len(logits_C))
    while True:
        order = top_ids(logits_C, size)
        cumulative = np.cumsum(weights_C[order], dtype=np.float64)
        if cumulative[-1] >= wanted or size == len(logits_C):
            return order[: int(np.searchsorted(cumulative, wanted, side="left")) + 1]
        size = min(size * 8, len(logits_C))


def top_ids(values: F32, k: int) -> NDArray[np.int64]:
    """Indices of the k largest values, largest first, lower indices first among equals."""
    if k >= len(values):
        return np.argsort(-values, kind="stable")
    threshold = np.partition(values, len(values) - k)[len(values) - k]
    above = np.flatnonzero(values > threshold)
    equal = np.flatnonzero(values == threshold)[: k - len(above)]
    chosen = np.concatenate([above, equal])
    return chosen[np.argsort(-values[chosen], kind="stable")]


def log_normalizer(row_V: F32) -> float:
    """log Σ exp(row), in float64: subtract it from a logit for its log-probability."""
    top = float(row_V.max())
    return top + float(np.log(np.exp(row_V.astype(np.float64) - top).sum()))


def rank_candidates(row_V: F32, token_id: int, num_top: int) -> list[tuple[int, float, int]]:
    """(token id, log-probability, rank) of `token_id` and then of the `num_top` likeliest.

    num_top -1 means all; `token_id` is not repeated.
    """
    normalizer = log_normalizer(row_V)
    value = row_V[token_id]
    rank = 1 + int((row_V > value).sum()) + int((row_V[:token_id] == value).sum())
    entries = [(token_id, float(value) - normalizer, rank)]
    if num_top:
        top = top_ids(row_V, len(row_V) if num_top < 0 else num_top)
        entries += [
            (int(other), float(row_V[other]) - normalizer, place)
            for place, other in enumerate(top, start=1)
            if other != token_id
        ]
    return entries
