"""From logits to tokens.

Shape legend: L rows, V vocabulary, C candidates, k largest logits of a row.

Each row is worked on alone, in one order of operations, so that a sequence's tokens
do not depend on what else is in the batch.  Only plain greedy rows, where nothing
can depend on neighbours, are taken together.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from llmir.engine.draw import draw, top_ids, weigh
from llmir.engine.sampling_params import SamplingParams
from llmir.engine.structured_output import Constraint
from llmir.errors import DeviceError
from llmir.runtime.base import F32, TopLogits

PARALLEL_SIZE = 1 << 18
"""Logits of random rows from which on several threads are worth while."""

MAX_THREADS = 4


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
    tokens: list[int | None] = best.tolist()
    rows = list(logits_LV)
    random: list[int] = []
    for i, state in enumerate(states):
        if state.constraint is not None:
            tokens[i] = sample_allowed(rows[i], state, state.constraint)
            continue
        if not state.keeps_logits:
            rows[i] = adjust(rows[i], state)
            best[i] = rows[i].argmax()
            tokens[i] = int(best[i])
        if not state.params.greedy:
            random.append(i)
    weights_RV = _weigh(
        [rows[i] for i in random],
        [float(rows[i][best[i]]) for i in random],
        [states[i].params.temperature for i in random],
    )
    for i, weights_V in zip(random, weights_RV, strict=True):
        tokens[i] = draw(rows[i], states[i].params, states[i].rng.random(), weights_V)
    return tokens


def _weigh(
    rows: Sequence[F32], largest: Sequence[float], temperatures: Sequence[float]
) -> Sequence[F32]:
    """`weigh` of each row, on several threads where that is worth while.

    The results stand in a buffer that the next call on this thread writes over: memory that is
    new for every step would be cleared by the system each time.
    """
    if not rows:
        return []
    size = len(rows) * len(rows[0])
    if _buffer.values.size < size:
        _buffer.values = np.empty(size, np.float32)
    out_RV = _buffer.values[:size].reshape(len(rows), -1)

    def work(part: slice) -> None:
        for i in range(len(rows))[part]:
            weigh(rows[i], temperatures[i], out_RV[i], largest[i])

    num_parts = 1 if size < PARALLEL_SIZE else min(_num_threads(), len(rows))
    share = -(-len(rows) // num_parts)
    parts = [slice(i, i + share) for i in range(0, len(rows), share)]
    waiting = [_threads().submit(work, part) for part in parts[1:]]
    work(parts[0])
    for one in waiting:
        one.result()
    return list(out_RV)


class _Buffer(threading.local):
    """Of each thread that samples, room for the weights of a step."""

    values: F32 = np.empty(0, np.float32)


_buffer = _Buffer()


@functools.cache
def _threads() -> ThreadPoolExecutor:
    """For rows side by side: numpy lets go of Python's lock while it works on one."""
    return ThreadPoolExecutor(_num_threads(), thread_name_prefix="llmir-sample")


@functools.cache
def _num_threads() -> int:
    return max(1, min(MAX_THREADS, len(os.sched_getaffinity(0))))


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
