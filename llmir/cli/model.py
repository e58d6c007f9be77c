"""From what the user names and the options given to a model that answers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from llmir.api import LLM
from llmir.cli.options import device_options, memory_fraction_option, verify_weights_option
from llmir.cli.progress import num_compile_stages, stages
from llmir.engine import SamplingParams
from llmir.errors import RequestError
from llmir.formats import WEIGHT_MODES

DEFAULT_MAX_TOKENS = 512
Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def model_options(command: Decorated) -> Decorated:
    """The options that `open_model` takes."""
    command = click.option(
        "--weights",
        type=click.Choice(WEIGHT_MODES),
        metavar="FORM",
        help="For a model, not an artifact: how to store the weights; see llmir compile.",
    )(command)
    command = click.option(
        "--target",
        help="For a model, not an artifact: what to compile it for.  [default: what --device "
        "needs, or cpu]",
    )(command)
    return device_options(memory_fraction_option(verify_weights_option(command)))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelChoice:
    """What was asked to run, and how; the fields are the options of `model_options`."""

    model: str
    target: str | None
    weights: str | None
    device: str | None
    threads: int | None
    kv_cache_memory: int | None
    device_memory_fraction: float | None
    verify_weights: str


def open_model(choice: ModelChoice) -> LLM:
    """Open an artifact, or the one that a model is compiled into.  Raises as `llmir.LLM`."""
    weights: dict[str, Any] = {} if choice.weights is None else {"weights": choice.weights}
    with stages(num_compile_stages(1) + 1) as on_stage:  # and the check of the artifact
        return LLM(
            choice.model,
            target=choice.target,
            device=choice.device,
            num_threads=choice.threads,
            kv_cache_memory_bytes=choice.kv_cache_memory,
            device_memory_fraction=choice.device_memory_fraction,
            max_num_seqs=1,  # a command serves one request at a time
            verify_weights=choice.verify_weights,
            on_stage=on_stage,
            **weights,
        )


def sampling_params(
    llm: LLM,
    *,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    seed: int | None,
    max_tokens: int | None,
    stop: Sequence[str],
) -> SamplingParams:
    """The model's default sampling with what was given instead.  Raises RequestError."""
    given = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
        "max_tokens": max_tokens,
        "stop": list(stop) or None,
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    defaults = {"max_tokens": DEFAULT_MAX_TOKENS, **llm.generation_config.sampling}
    return SamplingParams(**{**defaults, **chosen})


def read_prompt(given: str | None) -> str:
    """The prompt: an argument, or standard input where there is none or it is "-".

    Raises RequestError if it is empty or not UTF-8.
    """
    if given is None or given == "-":
        if sys.stdin.isatty():
            click.echo("Type the prompt; end it with Ctrl-D on a line of its own.", err=True)
        try:
            given = sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
        except UnicodeDecodeError as error:
            raise RequestError(f"the prompt must be UTF-8 text: {error}") from error
    if not given:
        raise RequestError("the prompt is empty")
    return given
