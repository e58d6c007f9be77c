"""llmir bench throughput: how many requests an artifact answers offline."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import Any

import click

from llmir.cli.bench_common import command_line, json_file_option, open_model, write_document
from llmir.cli.options import device_options
from llmir.cli.progress import stages

EPILOG = """\b
Examples:
  llmir bench throughput model.gguf
  llmir bench throughput model.llmir --num-prompts 32 --max-num-seqs 32 --temperature 0.8
  llmir bench throughput model.llmir --dataset-name sharegpt --json result.json
"""


@click.command(epilog=EPILOG)
@click.argument("model")
@click.option("--num-prompts", type=click.IntRange(1), default=64, show_default=True)
@click.option(
    "--dataset-name",
    type=click.Choice(["random", "sharegpt"]),
    default="random",
    show_default=True,
    help="random: of the lengths below; sharegpt: log-normal lengths with that dataset's means.",
)
@click.option("--input-len", type=click.IntRange(1), default=128, show_default=True)
@click.option("--output-len", type=click.IntRange(1), default=64, show_default=True)
@click.option(
    "--range-ratio",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.0,
    show_default=True,
    help="Lengths are uniform between len × (1 − ratio) and len × (1 + ratio).",
)
@click.option(
    "--prefix-len",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Tokens in front that all prompts share.",
)
@click.option(
    "--num-warmups",
    type=click.IntRange(0),
    default=2,
    show_default=True,
    help="Requests of the same kind before those that are measured.",
)
@click.option("--temperature", type=float, default=0.0, show_default=True)
@click.option("--top-p", type=float, default=1.0, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--disable-detokenize", is_flag=True, help="Make no text of the answers.")
@click.option("--max-num-seqs", type=int, help="Most sequences in a step.  [default: all]")
@click.option("--max-num-batched-tokens", type=int, help="Most tokens in a step.  [default: all]")
@click.option("--enable-prefix-caching/--no-enable-prefix-caching", default=True, show_default=True)
@device_options
@json_file_option
@click.pass_context
def throughput(
    ctx: click.Context,
    model: str,
    disable_detokenize: bool,
    max_num_seqs: int | None,
    max_num_batched_tokens: int | None,
    enable_prefix_caching: bool,
    device: str | None,
    threads: int | None,
    kv_cache_memory: int | None,
    json_file: str | None,
    **workload: Any,
) -> None:
    """Answer many requests at once with MODEL, an artifact or a model, and count.

    It runs in a process of its own, so that peak memory is that of serving.  The table says
    where the time of a step goes.  The names in the JSON are those of `vllm bench throughput`.
    """
    from llmir.bench import report
    from llmir.bench import throughput as measuring
    from llmir.bench.worker import run_job

    opened = open_model(model)
    machine = report.hardware()
    asked = measuring.Workload(**workload, detokenize=not disable_detokenize)
    job = {
        "job": "throughput",
        "path": str(opened.path),
        "workload": dataclasses.asdict(asked),
        "options": {
            "device": device,
            "num_threads": threads,
            "kv_cache_memory_bytes": kv_cache_memory,
        },
        "config": {
            "max_num_seqs": max_num_seqs,
            "max_num_batched_tokens": max_num_batched_tokens,
            "enable_prefix_caching": enable_prefix_caching,
        },
    }
    with stages(1) as on_stage, on_stage("answering"):
        measured = measuring.from_result(run_job(job))
    document = {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "model_id": opened.manifest.model.name,
        "hardware": dict(machine),
        "versions": report.versions(),
        "command": command_line(ctx),
        **measured.to_json(),
        "workload": dataclasses.asdict(asked),
    }
    write_document(document, json_file, [measuring.text(measured)])
