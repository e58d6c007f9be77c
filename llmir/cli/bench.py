"""llmir bench: how fast an artifact is on this machine."""

from __future__ import annotations

import dataclasses

import click

from llmir.cli.bench_common import (
    CountList,
    command_line,
    json_file_option,
    open_model,
    write_document,
)
from llmir.cli.bench_devices import devices
from llmir.cli.bench_op import op
from llmir.cli.bench_peers import peers
from llmir.cli.bench_peers_serve import peers_serve
from llmir.cli.bench_serve import serve
from llmir.cli.bench_throughput import throughput
from llmir.cli.options import device_options
from llmir.cli.progress import stages

EPILOG = """\b
Examples:
  llmir bench latency model.llmir
  llmir bench latency model.llmir --prompt-lens 128 --depths 0,2048 --batches 1
  llmir bench latency model.llmir --json results.json
"""


@click.group()
def bench() -> None:
    """Measure how fast an artifact is on this machine."""


bench.add_command(devices)
bench.add_command(op)
bench.add_command(peers)
bench.add_command(peers_serve)
bench.add_command(serve)
bench.add_command(throughput)


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
@json_file_option
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
    opened = open_model(model)
    machine = report.hardware()
    with stages(2 + len(cases)) as on_stage:
        rows, limits = run_latency(
            opened,
            cases,
            RunOptions(device=device, num_threads=threads, kv_cache_memory_bytes=kv_cache_memory),
            repeats=repeats,
            on_stage=on_stage,
        )
    document = report.document(
        opened,
        [dataclasses.asdict(row) for row in rows],
        limits,
        command=command_line(ctx),
        machine=machine,
    )
    write_document(document, json_file, [report.limits_line(limits) + "\n", report.table(rows)])
