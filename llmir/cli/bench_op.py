"""llmir bench op: where the time of a step goes."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llmir.cli.bench_common import (
    CountList,
    command_line,
    json_file_option,
    open_model,
    write_document,
)
from llmir.cli.options import device_options
from llmir.cli.progress import stages

if TYPE_CHECKING:
    from llmir.artifact import ModuleEntry

EPILOG = """\b
Examples:
  llmir bench op model.llmir
  llmir bench op model.llmir --prompt-lens "" --depths 0 --batches 1
  llmir bench op model.llmir --prompt-lens 128 --batches "" --json profile.json
"""


@click.command(epilog=EPILOG)
@click.argument("model")
@click.option(
    "--prompt-lens",
    type=CountList(1),
    default="512",
    show_default=True,
    help='Prefill prompts of these lengths, each in one step; "": none.',
)
@click.option(
    "--depths",
    type=CountList(0),
    default="0,512,4096",
    show_default=True,
    help="Decode with this many tokens of each sequence in the cache.",
)
@click.option(
    "--batches",
    type=CountList(1),
    default="1,32",
    show_default=True,
    help='Decode this many sequences together; "": no decoding.',
)
@device_options
@json_file_option
@click.pass_context
def op(
    ctx: click.Context,
    model: str,
    prompt_lens: list[int],
    depths: list[int],
    batches: list[int],
    device: str | None,
    threads: int | None,
    kv_cache_memory: int | None,
    json_file: str | None,
) -> None:
    """Time each op of a step of MODEL, an artifact or a model, and the step.

    The ops are those of the module that runs here, after selection and fusion.  Each is
    compiled and measured alone, with its weights and KV pages coming from memory as in a step.
    Below them stand their sum, the measured step, and the difference.  Shares compare the
    bytes and operations that a call cannot avoid with what this machine can do.  Needs the
    compile tools.
    """
    from llmir.bench import report
    from llmir.bench.cases import Case
    from llmir.bench.measure import RunOptions
    from llmir.bench.op import as_json, run_ops, text
    from llmir.compiler.versions import check_tools

    cases = [Case.decode(batch, depth) for batch in batches for depth in depths]
    cases += [Case.prefill(length) for length in prompt_lens]
    if not cases:
        raise click.UsageError("nothing to measure: no prompt lengths, and no batches × depths")
    check_tools()
    opened = open_model(model)
    machine = report.hardware()
    with (
        tempfile.TemporaryDirectory(prefix="llmir-") as scratch,
        stages(3 + 2 * len(cases)) as on_stage,
    ):
        profiles, limits = run_ops(
            opened,
            cases,
            RunOptions(device=device, num_threads=threads, kv_cache_memory_bytes=kv_cache_memory),
            Path(scratch),
            _compile_ops,
            on_stage=on_stage,
        )
    document = report.document(
        opened, as_json(profiles), limits, command=command_line(ctx), machine=machine
    )
    texts = [report.limits_line(limits), *(f"\n{text(profile)}" for profile in profiles)]
    write_document(document, json_file, texts)


def _compile_ops(module: ModuleEntry, output: Path) -> None:
    from llmir.bench.op_measure import CHAIN
    from llmir.compiler.op_modules import compile_calls

    compile_calls(module.calls, CHAIN, module.flags, output)
