"""A scheduler without an engine: sequences, and steps that only pretend to compute."""

from __future__ import annotations

import numpy as np

from llmir.engine.sampler import SampleState
from llmir.engine.sampling_params import SamplingParams
from llmir.engine.scheduler import Schedule, Scheduler, SchedulerConfig
from llmir.engine.sequence import Sequence
from llmir.runtime.base import StepLimits

from .fake_runner import small_limits

Ran = list[tuple[str, int, int]]


def make_seq(
    prompt: int | list[int], name: str = "s", max_tokens: int = 8, priority: int = 0
) -> Sequence:
    """A sequence with that prompt, or one of that many tokens: 0, 1, 2, …"""
    prompt = list(range(prompt)) if isinstance(prompt, int) else prompt
    output: list[int] = []
    return Sequence(
        request_id=name,
        index=0,
        prompt_token_ids=prompt,
        sampling=SampleState(
            params=SamplingParams(),
            prompt_token_ids=prompt,
            output_token_ids=output,
            stop_ids=(),
            rng=np.random.default_rng(0),
        ),
        eos_token_ids=frozenset(),
        max_tokens=max_tokens,
        output_token_ids=output,
        priority=priority,
    )


def make_scheduler(limits: StepLimits | None = None, **config: object) -> Scheduler:
    """Without prefix caching, unless asked for: most sequences here begin alike."""
    config = {"enable_prefix_caching": False} | config
    return Scheduler(limits or small_limits(), SchedulerConfig(**config))


def step(scheduler: Scheduler, token: int = 1) -> tuple[Ran, Schedule]:
    """Schedule, pretend to compute, append a token to whoever is due; returns what ran."""
    schedule = scheduler.schedule()
    for chunk in schedule.chunks:
        scheduler.advance(chunk)
        seq = chunk.seq
        if chunk.samples:
            seq.output_token_ids.append(token)
        whole = seq.max_tokens == 0 and seq.num_remaining == 0
        if whole or (chunk.samples and len(seq.output_token_ids) == seq.max_tokens):
            scheduler.finish(seq)
    return [(c.seq.request_id, c.start, c.length) for c in schedule.chunks], schedule


def names(ran: Ran) -> list[str]:
    return [name for name, *_ in ran]
