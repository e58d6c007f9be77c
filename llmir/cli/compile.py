"""llmir compile: a model in, an artifact out."""

from __future__ import annotations

import time

import click

from llmir.artifact import is_artifact
from llmir.cli.options import json_option, read_op_priority, split_commas
from llmir.cli.output import human_bytes, print_json, table
from llmir.cli.progress import num_compile_stages, stages
from llmir.compiler.options import FUSION_MODES, KV_DTYPES, PAGE_SIZES, CompileOptions
from llmir.errors import OptionError
from llmir.formats import WEIGHT_MODES

_DEFAULT = CompileOptions()
EPILOG = """\b
Examples:
  llmir compile model.gguf -o model.llmir
  llmir compile ./Llama-3.2-1B -o llama.llmir --weights q8_0 --target cpu,vulkan
  llmir compile model.gguf --op-priority rms_norm=portable --json
"""


@click.command("compile", epilog=EPILOG)
@click.argument("model")
@click.option("-o", "--output", help="The artifact's directory.  [default: in the cache]")
@click.option(
    "--target",
    "target_names",
    multiple=True,
    default=["cpu"],
    show_default="cpu",
    help="What to compile for; see `llmir targets`.  Repeatable, or separated by commas.",
)
@click.option(
    "--weights",
    type=click.Choice(WEIGHT_MODES),
    metavar="FORM",
    default=_DEFAULT.weights,
    show_default=True,
    help=f"How to store the weights: {', '.join(WEIGHT_MODES)}; keep: as the model has them.",
)
@click.option(
    "--kv-dtype",
    type=click.Choice(KV_DTYPES),
    default=_DEFAULT.kv_dtype,
    show_default=True,
    help="How the KV cache stores numbers; int8: with a scale for each token and head.",
)
@click.option(
    "--activations",
    default=_DEFAULT.activations,
    show_default=True,
    metavar="PRECISION|ROLE=PRECISION,…",
    help="How matmuls round their input: auto, int8, int8_16, bf16, int12, int16 or f32, for all "
    "or by role (qkv, o, gate_up, down, lm_head).",
)
@click.option(
    "--page-size",
    type=click.Choice([str(size) for size in PAGE_SIZES]),
    default=str(_DEFAULT.page_size),
    show_default=True,
    help="Tokens per page of the KV cache.",
)
@click.option(
    "--max-model-len",
    type=int,
    help="Longest prompt and answer together, in tokens.  [default: the model's, at most 8192]",
)
@click.option(
    "--max-num-batched-tokens",
    type=int,
    default=_DEFAULT.max_num_batched_tokens,
    show_default=True,
    help="Most tokens in one step.",
)
@click.option(
    "--max-num-seqs",
    type=int,
    help="Most sequences in one step.  [default: 64, or the tokens in a step if fewer]",
)
@click.option(
    "--fusion",
    type=click.Choice(FUSION_MODES),
    default=_DEFAULT.fusion,
    show_default=True,
    help="What kernels take in and share; ops: a dispatch for each kernel; none: for each op.",
)
@click.option(
    "--op-priority",
    multiple=True,
    metavar="OP=PROVIDER,…",
    help="Which providers may lower an op, first choice first.  Repeatable.",
)
@click.option(
    "--op-priority-file",
    metavar="FILE",
    help="The same from a file, one OP=PROVIDER,… per line; # begins a comment.",
)
@click.option(
    "--print-ir-after",
    multiple=True,
    metavar="PASS",
    help="Print the IR to stderr after PASS.  Repeatable, or separated by commas.",
)
@json_option
def compile_(
    model: str,
    output: str | None,
    target_names: tuple[str, ...],
    weights: str,
    kv_dtype: str,
    activations: str,
    page_size: str,
    max_model_len: int | None,
    max_num_batched_tokens: int,
    max_num_seqs: int | None,
    fusion: str,
    op_priority: tuple[str, ...],
    op_priority_file: str | None,
    print_ir_after: tuple[str, ...],
    as_json: bool,
) -> None:
    """Compile MODEL into an artifact, a directory that holds all that running it needs.

    Compiling the same thing again finds what was compiled before.
    """
    import llmir

    if is_artifact(model):
        raise OptionError(f"{model} is an artifact already; run it: llmir run {model}")
    names = split_commas(target_names)
    priority = read_op_priority(op_priority_file, op_priority)
    start = time.perf_counter()
    with stages(num_compile_stages(len(names))) as on_stage:
        started: list[str] = []
        artifact = llmir.compile(
            model,
            names,
            output,
            on_stage=lambda name: started.append(name) or on_stage(name),  # type: ignore[func-returns-value]
            print_ir_after=split_commas(print_ir_after),
            weights=weights,
            kv_dtype=kv_dtype,
            activations=activations,
            page_size=int(page_size),
            max_model_len=max_model_len,
            max_num_batched_tokens=max_num_batched_tokens,
            max_num_seqs=max_num_seqs,
            fusion=fusion,
            op_priority=priority,
        )
    seconds = time.perf_counter() - start
    cached = "loading the compiler" not in started
    manifest = artifact.manifest
    targets = [module.target for module in manifest.modules]
    document = {
        "artifact": str(artifact.path),
        "model": manifest.model.name,
        "targets": targets,
        "cached": cached,
        "cache_key": manifest.cache_key,
        "seconds": round(seconds, 3),
        "stage_seconds": {} if cached else dict(manifest.compile_seconds),
        "bytes": {name: entry.num_bytes for name, entry in manifest.files.items()},
    }
    if as_json:
        print_json(document)
        return
    how = "found, compiled before" if cached else "compiled"
    size = human_bytes(sum(entry.num_bytes for entry in manifest.files.values()))
    rows = [
        ("artifact", artifact.path),
        ("model", manifest.model.name),
        ("targets", ", ".join(targets)),
        ("size", size),
        ("time", f"{seconds:.1f} s ({how})"),
    ]
    click.echo(table(rows, indent=0))
