"""The options of `llmir serve` that are of the engine, and those that limit what clients may do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from llmir.api import PREFILL_PER_DECODE
from llmir.artifact import KV_ELEMENTS
from llmir.cli.options import AtLeast, ByteCount
from llmir.engine.policies import POLICIES
from llmir.engine.scheduler_config import ADMISSIONS

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

KV_DTYPES = {
    **{name: name for name in ("auto", *KV_ELEMENTS)},
    "bfloat16": "bf16",
    "float16": "f16",
    "float32": "f32",
    "fp8_e4m3": "fp8",
}
"""vLLM's names of KV cache dtypes, beside llmir's."""

SPECULATION = '{"method": "ngram", "num_speculative_tokens": 3}'
"""What is drafted unless told otherwise.  On two Zen 3 cores one client's answers came 1.7 times
as fast, those of sixteen as fast as without."""


def engine_flags(command: Decorated) -> Decorated:
    """Options of the engine, and those of compiling that vLLM has at this place."""
    for option in (
        click.option(
            "--enable-prefix-caching/--no-enable-prefix-caching",
            default=True,
            show_default=True,
            help="Compute what prompts begin with alike once.",
        ),
        click.option(
            "--scheduling-policy",
            type=click.Choice(list(POLICIES)),
            default="fcfs",
            show_default=True,
            help="Who is served first: who came first, who has the lowest priority, or whose "
            "prompt is cached the furthest (lpm).",
        ),
        click.option(
            "--admission",
            type=click.Choice(list(ADMISSIONS)),
            default="max_utilization",
            show_default=True,
            help="Whether requests begin as soon as their prompts fit, or only when all that they "
            "may become does, so that none is ever preempted.",
        ),
        click.option(
            "--max-prefill-per-decode",
            type=AtLeast(0),
            default=PREFILL_PER_DECODE,
            show_default=True,
            help="Tokens of prompts in a step for each answer that waits for its next token; inf: "
            "as many as fit, for throughput alone.",
        ),
        click.option(
            "--speculative-config",
            metavar="JSON",
            default=SPECULATION,
            show_default=True,
            help="Draft tokens that stood there before; answers are the same.  none: do not.",
        ),
        click.option(
            "--kv-cache-dtype",
            type=click.Choice(list(KV_DTYPES)),
            help="How the KV cache stores numbers; of an artifact, how it must.",
        ),
        click.option(
            "--max-num-batched-tokens", type=int, help="Most tokens in one step.  [default: all]"
        ),
        click.option(
            "--max-num-seqs", type=int, help="Most sequences in one step.  [default: all]"
        ),
        click.option(
            "--max-model-len",
            type=int,
            help="Longest prompt and answer together, in tokens; of an artifact, what it must be.",
        ),
    ):
        command = option(command)
    return command


def limit_flags(command: Decorated) -> Decorated:
    """Options that say how much is taken from clients."""
    for option in (
        click.option(
            "--shutdown-timeout",
            type=AtLeast(0),
            default=30.0,
            show_default=True,
            help="Seconds that running requests have when the server is asked to end.",
        ),
        click.option(
            "--request-timeout",
            type=AtLeast(0),
            default=600.0,
            show_default=True,
            help="Seconds that a request may take in all; 0: any number.",
        ),
        click.option(
            "--max-body-size",
            type=ByteCount(least=1),
            default="4M",
            show_default=True,
            help="Longest body of a request.",
        ),
        click.option(
            "--max-logprobs",
            type=click.IntRange(min=0),
            default=20,
            show_default=True,
            help="Most candidates whose log-probabilities a request may ask for.",
        ),
        click.option(
            "--max-waiting",
            type=click.IntRange(min=1),
            default=4096,
            show_default=True,
            help="Sequences that may wait; more are told to come again later.",
        ),
    ):
        command = option(command)
    return command
