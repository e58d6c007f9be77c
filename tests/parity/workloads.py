"""Random workloads: who asks for what, when they come and when they leave, and what serves them.

A workload is a function of its seed and of a runner's limits.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmir.engine import SamplingParams, SchedulerConfig, StructuredOutputsParams
from llmir.engine.ngram import NgramConfig
from llmir.runtime.base import F32, I32, StepBatch, StepLimits, StepRunner, TopLogits

LONGEST_PROMPT = 100
MOST_TOKENS = 40

Rng = np.random.Generator


class FewPages:
    """A runner with the first pages of its KV pools alone, so that one serves pools of any size."""

    def __init__(self, runner: StepRunner, num_pages: int) -> None:
        self._runner = runner
        self._limits = dataclasses.replace(
            runner.limits, num_pages=tuple(min(num_pages, most) for most in runner.limits.num_pages)
        )

    @property
    def limits(self) -> StepLimits:
        return self._limits

    @property
    def top_k(self) -> int:
        return self._runner.top_k

    def step(self, batch: StepBatch) -> F32:
        return self._runner.step(batch)

    def step_greedy(self, batch: StepBatch) -> I32:
        return self._runner.step_greedy(batch)

    def step_topk(self, batch: StepBatch) -> TopLogits:
        return self._runner.step_topk(batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request.

    arrival   steps that are run before it comes
    leaves    steps that are run before it is aborted; None: it stays to the end
    """

    prompt: list[int]
    params: SamplingParams
    priority: int
    arrival: int
    leaves: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Requests, and the limits that they are served under."""

    asks: list[Ask]
    config: SchedulerConfig
    speculation: NgramConfig | None
    num_pages: int


def random_workload(seed: list[int], limits: StepLimits) -> Workload:
    """2 … 10 requests under limits that are often as tight as they can be."""
    rng = np.random.default_rng(seed)
    config = _config(rng, limits)
    beginnings = [_tokens(rng, limits.vocab_size, 1, 80) for _ in range(2)]
    last_arrival = int(rng.choice([0, 6, 25]))
    asks = []
    for _ in range(rng.integers(2, 11)):
        arrival = int(rng.integers(0, last_arrival + 1))
        leaves = arrival + int(rng.integers(0, 50)) if rng.random() < 0.2 else None
        ranked = config.scheduling_policy == "priority"
        asks.append(
            Ask(
                prompt=_prompt(rng, limits.vocab_size, beginnings),
                params=_params(rng, limits.vocab_size),
                priority=int(rng.integers(-1, 3)) if ranked else 0,
                arrival=arrival,
                leaves=leaves,
            )
        )
    longest = max(len(ask.prompt) + (ask.params.max_tokens or 0) for ask in asks)
    spare = int(rng.choice([0, 1, 2, 3, 100]))
    drafts = NgramConfig(
        num_speculative_tokens=int(rng.integers(1, 7)), prompt_lookup_min=int(rng.integers(1, 3))
    )
    return Workload(
        asks=asks,
        config=config,
        speculation=drafts if rng.random() < 0.5 else None,
        num_pages=1 + -(-longest // limits.page_size) + spare,
    )


def _config(rng: Rng, limits: StepLimits) -> SchedulerConfig:
    caching = rng.random() < 0.75
    policies = ["fcfs", "priority", "lpm"] if caching else ["fcfs", "priority"]
    budget = int(rng.integers(1, min(64, limits.max_num_batched_tokens) + 1))
    return SchedulerConfig(
        max_num_batched_tokens=_maybe(rng, budget),
        max_num_seqs=_maybe(rng, int(rng.integers(1, min(8, limits.max_num_seqs) + 1))),
        max_logit_rows=_maybe(rng, int(rng.integers(1, 20))),
        max_prefill_chunk=_maybe(rng, int(rng.integers(1, budget + 1))),
        max_prefill_per_decode=_maybe(rng, float(rng.uniform(0, 4))),
        enable_prefix_caching=caching,
        scheduling_policy=str(rng.choice(policies)),
        max_overtakes=int(rng.choice([0, 2, 64])),
        admission=str(rng.choice(["max_utilization", "guaranteed_no_evict"], p=[0.7, 0.3])),
    )


def _maybe(rng: Rng, value: Any) -> Any:
    return value if rng.random() < 0.5 else None


def _tokens(rng: Rng, vocab_size: int, least: int, most: int) -> list[int]:
    """Random tokens; a third of these prompts repeat themselves, so that drafts are made."""
    length = int(rng.integers(least, most + 1))
    if rng.random() < 0.33:
        period = rng.integers(0, vocab_size, int(rng.integers(1, 6))).tolist()
        return (period * length)[:length]
    tokens: list[int] = rng.integers(0, vocab_size, length).tolist()
    return tokens


def _prompt(rng: Rng, vocab_size: int, beginnings: list[list[int]]) -> list[int]:
    own = _tokens(rng, vocab_size, 1, int(rng.choice([3, 20, LONGEST_PROMPT])))
    kind = rng.random()
    if kind < 0.4:
        return own
    beginning = beginnings[int(rng.integers(0, 2))]
    if kind < 0.5:
        return beginning  # all of it is shared
    return (beginning[: int(rng.integers(1, len(beginning) + 1))] + own)[:LONGEST_PROMPT]


def _params(rng: Rng, vocab_size: int) -> SamplingParams:
    fields: dict[str, Any] = {
        "max_tokens": int(rng.integers(1, MOST_TOKENS + 1)),
        "n": int(rng.choice([1, 2, 3], p=[0.8, 0.1, 0.1])),
        "ignore_eos": bool(rng.random() < 0.7),
    }
    if rng.random() < 0.6:
        fields["temperature"] = 0.0
    else:
        fields["seed"] = int(rng.integers(0, 1000))
        fields["temperature"] = float(rng.uniform(0.3, 1.5))
        if rng.random() < 0.5:
            fields["top_p"] = float(rng.uniform(0.5, 1.0))
        if rng.random() < 0.3:
            fields["top_k"] = int(rng.integers(1, 60))
    for chance, more in (
        (0.15, {"logprobs": int(rng.integers(0, 4))}),
        (0.08, {"prompt_logprobs": int(rng.integers(0, 3))}),
        (0.1, {"stop": ["e", "th", "qu"]}),
        (0.1, {"stop_token_ids": rng.integers(0, vocab_size, 12).tolist()}),
        (0.1, {"repetition_penalty": 1.2, "frequency_penalty": 0.5}),
        (0.1, {"min_tokens": int(rng.integers(0, int(fields["max_tokens"]) + 1))}),
        (0.1, {"structured_outputs": StructuredOutputsParams(regex="[a-f]{3,9}(x|yz)")}),
    ):
        if rng.random() < chance:
            fields |= more
    return SamplingParams(**fields)
