"""Numbers of an engine at work: what `/metrics` and the benchmarks show."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class StepSeconds:
    """Where the seconds of the steps went, added up.

    schedule   choosing chunks and giving them pages
    build      writing the arrays of the batch
    run        the runner: the model, and nothing else
    sample     from logits to tokens
    update     advancing sequences
    """

    schedule: float = 0.0
    build: float = 0.0
    run: float = 0.0
    sample: float = 0.0
    update: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """An engine now, and since it was made.

    num_running, num_waiting   sequences in the batch, and queued
    kv_cache_usage             0 … 1: pages that sequences hold, of the fullest pool
    prefix_cache_queries       tokens of sequences taken in that might have been cached …
    prefix_cache_hits          … and those that were
    num_preemptions            sequences that lost their pages
    num_steps, num_batched_tokens   steps run, and tokens in them
    prompt_tokens              of the requests whose prompts were computed, cached ones included
    generation_tokens          tokens sampled
    num_drafts, num_draft_tokens, num_accepted_tokens
                               speculation: drafts verified, tokens in them, and those of them
                               that were what was chosen
    seconds                    where the time of the steps went
    """

    num_running: int
    num_waiting: int
    kv_cache_usage: float
    prefix_cache_queries: int
    prefix_cache_hits: int
    num_preemptions: int
    num_steps: int
    num_batched_tokens: int
    prompt_tokens: int
    generation_tokens: int
    num_drafts: int
    num_draft_tokens: int
    num_accepted_tokens: int
    seconds: StepSeconds = field(default_factory=StepSeconds)
