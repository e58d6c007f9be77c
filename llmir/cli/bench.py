"""llmir bench: how fast an artifact is on this machine."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import click

from llmir import api, artifact
from llmir.cli.bench_peers import peers
from llmir.cli.options import device_options
from llmir.cli.output import print_json
from llmir.cli.progress import num_compile_stages, stages

EPILOG = """\b
Examples:
  llmir bench latency model.llmir
  llmir bench latency model.llmir --prompt-lens 128 --depths 0,2048 --batches 1
  llmir bench latency model.llmir --json results.json
"""


class CountList(click.ParamType):
    """Whole numbers, separated by commas, each once; none below `least`."""

    name = "n,n,…"

    def __init__(self, least: int) -> None:
        self._least = least

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[int]:
        if isinstance(value, list):
            return value
        parts = [part.strip() for part in str(value).split(",") if part.strip()]
        if not all(part.isascii() and part.isdigit() for part in parts):
            self.fail(f"{value!r} is not a list of whole numbers such as 128,512", param, ctx)
        numbers = list(dict.fromkeys(int(part) for part in parts))
        for number in numbers:
            if number < self._least:
                self.fail(f"{number} is less than {self._least}", param, ctx)
        return numbers


@click.group()
def bench() -> None:
    """Measure how fast an artifact is on this machine."""


bench.add_command(peers)


@bench.command(epilog=EPILOG)
@click.argument("model")
@click.option(
    "--prompt-lens",
    type=CountList(1),
    default="128,512",
    show_default=True,
    help='Prefill prompts of these lengths; "": none.',
)
@click.option(
    "--depths",
    type=CountList(0),
    default="0,512",
    show_default=True,
    help="Decode with this many tokens of each sequence in the cache.",
)
@click.option(
    "--batches",
    type=CountList(1),
    default="1,8,32",
    show_default=True,
    help='Decode this many sequences together; "": no decoding.',
)
@click.option(
    "--repeats", type=int, default=5, show_default=True, help="Rounds of each measurement."
)
@device_options
@click.option(
    "--json",
    "json_file",
    is_flag=False,
    flag_value="-",
    metavar="[FILE]",
    help='Write one JSON document to FILE; without FILE, or with "-", to standard output '
    "in place of the table.",
)
@click.pass_context
def latency(
    ctx: click.Context,
    model: str,
    prompt_lens: list[int],
    depths: list[int],
    batches: list[int],
    repeats: int,
    device: str | None,
    threads: int | None,
    kv_cache_memory: int | None,
    json_file: str | None,
) -> None:
    """Time the steps of MODEL, an artifact or a model: prefill, and decode at depth.

    Each row is measured in a process of its own, so that load time and peak memory are
    those of serving it.  Rates are of steps alone.  Shares compare the bytes and operations
    that a step cannot avoid with what this machine can do, which is measured first.
    """
    from llmir.bench import report
    from llmir.bench.cases import Case
    from llmir.bench.latency import run_latency
    from llmir.bench.measure import RunOptions

    cases = [Case.prefill(length) for length in prompt_lens]
    cases += [Case.decode(batch, depth) for batch in batches for depth in depths]
    if not cases:
        raise click.UsageError("nothing to measure: no prompt lengths, and no batches × depths")
    opened = _open(model)
    machine = report.hardware()
    with stages(2 + len(cases)) as on_stage:
        rows, limits = run_latency(
            opened,
            cases,
            RunOptions(device=device, num_threads=threads, kv_cache_memory_bytes=kv_cache_memory),
            repeats=repeats,
            on_stage=on_stage,
        )
    document = report.document(opened, rows, limits, command=_command(ctx), machine=machine)
    if json_file == "-":
        print_json(document)
        return
    click.echo(report.heading(machine))
    click.echo(report.limits_line(limits) + "\n")
    click.echo(report.table(rows))
    if json_file is not None:
        Path(json_file).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _open(model: str) -> artifact.Artifact:
    """An artifact, or the one that a model is compiled into."""
    if artifact.is_artifact(model):
        return artifact.load(model)
    with stages(num_compile_stages(1)) as on_stage:
        return api.compile(model, on_stage=on_stage)


def _command(ctx: click.Context) -> str:
    """The command line that gives this measurement again, defaults included."""
    words = ctx.command_path.split()
    for param in ctx.command.params:
        value = ctx.params[param.name or ""]
        if value is None or param.name == "json_file":
            continue
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        words += [text] if isinstance(param, click.Argument) else [param.opts[0], text]
    return shlex.join(words)
