"""llmir bench devices: one workload on every device of this machine."""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llmir.cli.bench_common import (
    CountList,
    command_line,
    json_file_option,
    open_model,
    threads_option,
    write_document,
)
from llmir.cli.progress import stages

if TYPE_CHECKING:
    from llmir.artifact import ModuleEntry
    from llmir.bench.devices.run import CompileLimits, LimitFiles

EPILOG = """\b
Examples:
  llmir bench devices model.llmir
  llmir bench devices model.llmir --devices cpu,vulkan://0 --depths 0 --batches 1
  llmir bench devices model.llmir --json devices.json --plot devices.svg
"""


@click.command(epilog=EPILOG)
@click.argument("model")
@click.option("--devices", metavar="URI,…", default="", help="Only these.  [default: all]")
@click.option(
    "--prompt-lens",
    type=CountList(1),
    default="128",
    show_default=True,
    help='Prefill prompts of these lengths; "": none.',
)
@click.option(
    "--depths",
    type=CountList(0),
    default="128",
    show_default=True,
    help="Decode with this many tokens of each sequence in the cache.",
)
@click.option(
    "--batches",
    type=CountList(1),
    default="1,8",
    show_default=True,
    help='Decode this many sequences together; "": no decoding.',
)
@click.option(
    "--repeats", type=click.IntRange(1), default=3, show_default=True, help="Rounds of each."
)
@threads_option
@json_file_option
@click.option("--plot", metavar="FILE", help="Draw the rooflines, as SVG.")
@click.pass_context
def devices(
    ctx: click.Context,
    model: str,
    devices: str,
    prompt_lens: list[int],
    depths: list[int],
    batches: list[int],
    repeats: int,
    threads: int | None,
    json_file: str | None,
    plot: str | None,
) -> None:
    """Measure MODEL, an artifact or a model, on every device that it has a module for.

    Each row is measured in a process of its own.  Shares are of the limits of that device: of
    CPUs as `llmir bench latency` measures them, of others by small modules that the compile tools
    make for it.  Devices and targets that are not measured are named, with the reason.
    """
    from llmir.bench import report
    from llmir.bench.cases import Case
    from llmir.bench.devices import report as of_devices
    from llmir.bench.devices.places import places_for
    from llmir.bench.devices.roofline import draw
    from llmir.bench.devices.run import run_devices
    from llmir.bench.measure import RunOptions

    cases = [Case.prefill(length) for length in prompt_lens]
    cases += [Case.decode(batch, depth) for batch in batches for depth in depths]
    if not cases:
        raise click.UsageError("nothing to measure: no prompt lengths, and no batches × depths")
    opened = open_model(model)
    places = places_for(opened, [d.strip() for d in devices.split(",") if d.strip()])
    machine = report.hardware()
    there = [place.module for place in places if place.module]
    num_stages = sum(1 + len(cases) + module.target.startswith("cpu") for module in there)
    with (
        tempfile.TemporaryDirectory(prefix="llmir-") as scratch,
        stages(num_stages) as on_stage,
    ):
        results = run_devices(
            opened,
            places,
            cases,
            RunOptions(num_threads=threads),
            repeats=repeats,
            compile_limits=_compiler(Path(scratch)),
            on_stage=on_stage,
        )
    document = report.document(opened, [], None, command=command_line(ctx), machine=machine)
    document["devices"] = of_devices.as_json(results)
    write_document(document, json_file, [of_devices.text(results)])
    if plot:
        Path(plot).write_text(draw(of_devices.roofs(results)), encoding="utf-8")
    if failed := [r.place.uri for r in results if r.error]:
        raise click.ClickException(f"these devices failed, see above: {', '.join(failed)}")


def _compiler(scratch: Path) -> CompileLimits | None:
    """What compiles the modules that measure a device; None without the compile tools."""
    if find_spec("iree.compiler") is None:
        return None

    def compile_limits(module: ModuleEntry) -> LimitFiles:
        from llmir.bench.devices.run import LimitFiles
        from llmir.compiler.limit_modules import compile_limits, matmul_size

        kind = module.target.partition(":")[0]
        directory = scratch / module.target.replace(":", "-")
        directory.mkdir(exist_ok=True)
        files, failed = compile_limits(kind, module.flags, directory)
        return LimitFiles(files=files, failed=failed, matmul_size=matmul_size(kind))

    return compile_limits
