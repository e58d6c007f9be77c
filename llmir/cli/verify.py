"""llmir verify: do devices, or two artifacts, give the same answers?"""

from __future__ import annotations

import json
from pathlib import Path

import click

from llmir.cli.bench_common import command_line, json_file_option
from llmir.cli.exit_codes import DIFFERENT
from llmir.cli.options import ByteCount, split_commas, verify_weights_option
from llmir.cli.output import check_writable, print_json
from llmir.cli.progress import stages

EPILOG = """\b
Examples:
  llmir verify model.llmir --devices cpu,vulkan
  llmir verify model.llmir --devices cpu --reference transformers --reference-model model.gguf
  llmir verify model.llmir --devices cpu,cuda://0 --ops --output report.md --json report.json
  llmir verify new.llmir --against old.llmir --devices cpu
"""


@click.command(epilog=EPILOG)
@click.argument("artifact")
@click.option(
    "--devices",
    metavar="DEVICE,…",
    help="What to run it on, as `llmir targets` lists them; the first is what the others are "
    "compared with.  [default: the first that can]",
)
@click.option(
    "--against", metavar="ARTIFACT", help="Compare with this artifact, on each device, instead."
)
@click.option(
    "--reference",
    type=click.Choice(["none", "transformers"]),
    default="none",
    show_default=True,
    help="Compare every device with this as well: transformers, in float32 on the CPU.",
)
@click.option(
    "--reference-model",
    type=click.Path(path_type=Path),
    metavar="MODEL",
    help="The GGUF file or Hugging Face directory that the artifact was compiled from; the "
    "reference reads it.",
)
@click.option(
    "--prompts",
    "prompts_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Prompts, one a line; of a .jsonl file text, token ids, or an object with prompt, "
    "prompt_token_ids or messages.  [default: built-in ones]",
)
@click.option(
    "--built-in",
    metavar="NAME,…",
    default="",
    help="Of the built-in prompts only these: prose, code, numbers, chat, scripts, long.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(1),
    default=24,
    show_default=True,
    help="Tokens of each answer.",
)
@click.option("--max-logit-diff", type=float, help="[default: 0.05, or 5 where a side rounds]")
@click.option("--max-kl", type=float, help="Mean KL in nats.  [default: 1e-5, or 5e-3]")
@click.option("--min-top1", type=float, help="Share of 1.  [default: 0.99, or 0.95]")
@click.option(
    "--margin",
    type=float,
    help="Greedy tokens may differ where the reference's two best logits are nearer than this.  "
    "[default: 0.01, or 0.5 where a side rounds]",
)
@click.option(
    "--ops/--no-ops",
    default=None,
    help="Run each op of the step alone on each device, beside its definition in numpy.  "
    "[default: where a comparison fails]",
)
@click.option(
    "--latency/--no-latency",
    default=True,
    show_default=True,
    help="With --against: time the steps and ops of both.",
)
@click.option("--threads", type=int, help="CPU threads.  [default: one per physical core]")
@click.option(
    "--kv-cache-memory",
    type=ByteCount(),
    help="Memory for the KV cache of each side.  [default: what the prompts need]",
)
@verify_weights_option
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the report, which is Markdown, to FILE as well.",
)
@json_file_option
@click.pass_context
def verify(
    ctx: click.Context,
    artifact: str,
    devices: str | None,
    against: str | None,
    reference: str,
    reference_model: Path | None,
    prompts_file: Path | None,
    built_in: str,
    verify_weights: str,
    output: Path | None,
    json_file: str | None,
    max_tokens: int,
    ops: bool | None,
    latency: bool,
    threads: int | None,
    kv_cache_memory: int | None,
    **thresholds: float | None,
) -> None:
    """Check that ARTIFACT gives the same answers on several devices.

    The same prompts run on each: teacher-forced, where the logits of every position are
    compared, and free, where greedy answers are.  Exit code 9 says that they differ by more
    than the thresholds, which docs/verify.md explains.
    """
    from llmir import artifact as artifacts
    from llmir.verify import report
    from llmir.verify.run import VerifyOptions
    from llmir.verify.run import verify as run
    from llmir.verify.sides import split_devices

    if prompts_file is not None and built_in:
        raise click.UsageError("give --prompts or --built-in, not both")
    if reference_model is not None and reference == "none":
        raise click.UsageError("--reference-model is for --reference transformers")
    check_writable(output, json_file)
    opened = artifacts.load(artifact, verify_weights=verify_weights)
    options = VerifyOptions(
        devices=tuple(split_devices(devices)) if devices is not None else (),
        against=artifacts.load(against, verify_weights=verify_weights) if against else None,
        transformers=reference == "transformers",
        reference_model=reference_model,
        prompts_file=prompts_file,
        built_in=tuple(split_commas([built_in])),
        max_tokens=max_tokens,
        thresholds=thresholds,
        ops=ops,
        latency=latency,
        num_threads=threads,
        kv_cache_bytes=kv_cache_memory,
    )
    with stages(8) as on_stage:
        certificate = run(opened, options, on_stage)
    without = ("output", "built_in") if not built_in else ("output",)
    document = report.document(certificate, command_line(ctx, without=without))
    text = report.markdown(certificate, document)
    # Standard output first, and the second file whatever becomes of the first: disks fill up.
    if json_file == "-":
        print_json(document)
    else:
        click.echo(text, nl=False)
    try:
        if output is not None:
            output.write_text(text, encoding="utf-8")
    finally:
        if json_file not in (None, "-"):
            Path(json_file).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    ctx.exit(0 if certificate.passed else DIFFERENT)
