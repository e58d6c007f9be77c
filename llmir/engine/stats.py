"""Numbers of an engine at work: what `/metrics` and the benchmarks show."""

from __future__ import annotations

from dataclasses import dataclass


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
class SchedulerStats:
    """How the scheduler stands between two steps; what counts up does so from its start.

    num_running           sequences that hold pages
    num_waiting           sequences that hold none: not begun, or preempted
    kv_cache_usage        of the group of layers with the least left, the part of the pages that
                          cannot be handed out, 0 … 1; what is cached and idle can
    prefix_cache_queries  tokens that were looked for in the prefix cache when sequences began
    prefix_cache_hits     those that were there
    num_preemptions       times that a sequence lost its pages
    num_pinned_pages      pages that pins keep, of all groups
    num_unused_slots      tokens that the pages of running sequences have room for and that are not
                          computed; fewer than page_size for each, but after a step that failed
    """

    num_running: int
    num_waiting: int
    kv_cache_usage: float
    prefix_cache_queries: int
    prefix_cache_hits: int
    num_preemptions: int
    num_pinned_pages: int
    num_unused_slots: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats(SchedulerStats):
    """An engine now, and since it was made.

    num_steps, num_batched_tokens   steps run, and tokens in them
    prompt_tokens                   of requests that were begun, cached ones included
    generation_tokens               tokens sampled
    num_drafts, num_draft_tokens, num_accepted_tokens
                                    speculation: drafts verified, tokens in them, and those of
                                    them that were what was chosen
    seconds                         where the time of the steps went
    """

    num_steps: int
    num_batched_tokens: int
    prompt_tokens: int
    generation_tokens: int
    num_drafts: int
    num_draft_tokens: int
    num_accepted_tokens: int
    seconds: StepSeconds
