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
from llmir.errors import DeviceError
from llmir.runtime.base import F32, TopLogits

PARALLEL_SIZE = 1 << 18
"""Logits of random rows from which on several threads are worth while."""

MAX_THREADS = 4


@dataclass(slots=True, kw_only=True)
class SampleState:
    """What the choice of a sequence's next token depends on, besides its logits.

    stop_ids: tokens that would end the output; masked while it is shorter than min_tokens.
    """

    params: SamplingParams
    prompt_token_ids: Sequence[int]
    output_token_ids: Sequence[int]
    stop_ids: Sequence[int]
    rng: np.random.Generator

    @property
    def keeps_logits(self) -> bool:
        """Whether the logits are used as they come."""
        params = self.params
        masked = bool(self.stop_ids) and len(self.output_token_ids) < params.min_tokens
        return not (masked or params.logit_bias or params.has_penalties)

    @property
    def is_argmax(self) -> bool:
        """Whether the token is the likeliest, and nothing else is asked of the logits."""
        return self.params.greedy and self.keeps_logits and self.params.logprobs is None

    def fits(self, top_k: int, vocab_size: int) -> bool:
        """Whether the `top_k` largest logits hold all that the choice depends on.

        A request's own top_k that cuts nothing off leaves the candidates in another order.
        """
        params = self.params
        if not self.keeps_logits or params.logprobs is not None or top_k == 0:
            return False
        cuts = 0 < params.top_k <= top_k and params.top_k < vocab_size
        return params.greedy or (cuts and params.min_p == 0.0)


def check_choices(tokens: Sequence[int]) -> list[int]:
    """Tokens that a device chose.  Raises DeviceError as `sample`, where one is -1."""
    bad = sum(token < 0 for token in tokens)
    if bad:
        raise DeviceError(f"{bad} of {len(tokens)} rows of logits have no finite maximum")
    return [int(token) for token in tokens]


def sample(logits_LV: F32, states: Sequence[SampleState]) -> list[int]:
    """The next token of each row; draws one number from the generator of each random row.

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
    tokens = best.tolist()
    rows = list(logits_LV)
    for i, state in enumerate(states):
        if not state.keeps_logits:
            rows[i] = adjust(rows[i], state)
            tokens[i] = int(rows[i].argmax())
    random = [i for i, state in enumerate(states) if not state.params.greedy]
    weights_RV = _weigh(
        [rows[i] for i in random],
        [float(rows[i][tokens[i]]) for i in random],
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


def adjust(row_V: F32, state: SampleState) -> F32:
    """A copy of `row_V` after min_tokens, logit_bias and the penalties."""
    params = state.params
    row_V = row_V.copy()
    if len(state.output_token_ids) < params.min_tokens:
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
