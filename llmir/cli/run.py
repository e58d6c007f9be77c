"""llmir run: one question, its answer streamed."""

from __future__ import annotations

import time
from typing import Any

import click

from llmir.api import LLM
from llmir.cli.model import ModelChoice, model_options, open_model, read_prompt, sampling_params
from llmir.cli.options import json_option, sampling_options
from llmir.cli.output import print_json
from llmir.engine import SamplingParams

EPILOG = """\b
Examples:
  llmir run model.gguf "What is the capital of France?" --temperature 0
  llmir run model.llmir --raw "The capital of France is" --max-tokens 8
  git diff | llmir run model.llmir --system "Summarise this change." -
"""


@click.command(epilog=EPILOG)
@click.argument("model")
@click.argument("prompt", required=False)
@click.option("--system", help="What the model is told before the question.")
@click.option("--raw", is_flag=True, help="Continue PROMPT as it stands, without chat template.")
@sampling_options
@model_options
@json_option
def run(
    prompt: str | None,
    system: str | None,
    raw: bool,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    seed: int | None,
    max_tokens: int | None,
    stop: tuple[str, ...],
    as_json: bool,
    **choice: Any,
) -> None:
    """Ask MODEL one question, PROMPT, and print the answer as it comes.

    MODEL is a model or an artifact.  Without PROMPT, or with "-", the question is read from
    standard input.
    """
    if raw and system is not None:
        raise click.UsageError("--system needs the chat template that --raw leaves out")
    start = time.perf_counter()
    text = read_prompt(prompt)
    llm = open_model(ModelChoice(**choice))
    params = sampling_params(
        llm,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        max_tokens=max_tokens,
        stop=stop,
    )
    request: Any = text if raw else llm.render_chat(messages(text, system))
    if as_json:
        print_json(_answer(llm, request, params, start))
    else:
        _stream(llm, request, params)


def messages(text: str, system: str | None) -> list[dict[str, str]]:
    """A conversation with one question."""
    before = [] if system is None else [{"role": "system", "content": system}]
    return [*before, {"role": "user", "content": text}]


def _stream(llm: LLM, request: Any, params: SamplingParams) -> None:
    last = ""
    for output in llm.stream(request, params, delta=True):
        piece = output.outputs[0].text
        click.echo(piece, nl=False)
        last = piece or last
    if not last.endswith("\n"):
        click.echo()


def _answer(llm: LLM, request: Any, params: SamplingParams, start: float) -> dict[str, Any]:
    loaded = time.perf_counter()
    first: float | None = None
    for output in llm.stream(request, params):
        first = first or time.perf_counter()
        final = output
    end = time.perf_counter()
    (completion,) = final.outputs
    num_tokens = len(completion.token_ids)
    decode_seconds = end - (first or end)
    return {
        "artifact": str(llm.artifact.path),
        "prompt": final.prompt,
        "prompt_token_ids": final.prompt_token_ids,
        "text": completion.text,
        "token_ids": completion.token_ids,
        "finish_reason": completion.finish_reason,
        "stop_reason": completion.stop_reason,
        "seconds": {
            "load": round(loaded - start, 3),
            "first_token": round((first or end) - loaded, 3),
            "total": round(end - start, 3),
        },
        "decode_tokens_per_second": (
            round((num_tokens - 1) / decode_seconds, 2) if num_tokens > 1 else None
        ),
    }
