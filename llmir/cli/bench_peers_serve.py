"""llmir bench peers-serve: llmir's server beside others, alternating."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmir.cli.bench_common import (
    alternations_option,
    command_line,
    peers_dir_option,
    rows_option,
    table_option,
    threads_option,
)
from llmir.cli.bench_peers import compile_value, gguf_file
from llmir.cli.options import split_commas
from llmir.cli.progress import StageHook, num_compile_stages, stages
from llmir.errors import OptionError

if TYPE_CHECKING:
    from llmir.artifact import Artifact

EPILOG = """\b
Examples:
  llmir bench peers-serve model.gguf --table serve.md --json serve.json
  llmir bench peers-serve model.gguf --peers llama.cpp:q4_0,vllm --scenarios shared,unshared
  llmir bench peers-serve model.gguf --serve-args "--kv-cache-memory 256M" --scenarios shared
"""


@click.command("peers-serve", epilog=EPILOG)
@click.argument("model")
@click.option(
    "--peers",
    "peer_names",
    multiple=True,
    metavar="PEER[:SIDE],…",
    help='Servers and offline engines, or one side such as "llama.cpp:q4_0"; ":*" is all of '
    'its sides, "" none.  [default: all, with the sides known to be fast]',
)
@click.option(
    "--scenarios",
    "scenario_names",
    multiple=True,
    metavar="NAME,…",
    help="Of start, shared, unshared, one_client, repeated_prompt, mixed, offline, sampled.  "
    "[default: all]",
)
@alternations_option("scenario")
@threads_option
@click.option(
    "--llmir-option",
    "llmir_options",
    multiple=True,
    metavar="NAME=VALUE",
    help="An option of llmir.compile.  Repeatable.",
)
@click.option(
    "--serve-args", default="", metavar="TEXT", help="Further arguments of `llmir serve`."
)
@click.option(
    "--unchunked-args",
    metavar="TEXT",
    help="Those of the server of `mixed` whose steps hold whole prompts.  [default: --serve-args]",
)
@click.option(
    "--long-rate",
    type=click.FloatRange(0, min_open=True),
    help="Long prompts per second in `mixed`.  [default: 0.25]",
)
@click.option("--smoke", is_flag=True, help="Few tokens: whether all works, and no figures.")
@peers_dir_option
@table_option
@rows_option
@click.pass_context
def peers_serve(
    ctx: click.Context,
    model: str,
    peer_names: tuple[str, ...],
    scenario_names: tuple[str, ...],
    alternations: int,
    threads: int | None,
    llmir_options: tuple[str, ...],
    serve_args: str,
    unchunked_args: str | None,
    long_rate: float | None,
    smoke: bool,
    peers_dir: str | None,
    table_file: str | None,
    json_file: str | None,
) -> None:
    """Compare `llmir serve` and llmir offline with other engines on MODEL, a GGUF file.

    Each server listens on a port of its own and is stopped while another has its turn.  All
    get the same requests, in turn: a round of one scenario each, again and again.  The table
    has medians over the rounds.  The files are rewritten after every round of all sides.
    """
    from llmir.bench import report
    from llmir.bench.peers import llmir_side
    from llmir.bench.peers.environments import default_peers_dir
    from llmir.bench.peers.serving import registry
    from llmir.bench.peers.serving.llmir_server import UNCHUNKED
    from llmir.bench.peers.serving.output import Output
    from llmir.bench.peers.serving.run import Comparison
    from llmir.bench.peers.serving.scenarios import select
    from llmir.host import num_cores

    gguf_file(model)
    scenarios = select(split_commas(scenario_names), is_smoke=smoke, long_per_s=long_rate)
    names = split_commas(peer_names) if peer_names else list(registry.PEERS)
    machine = report.hardware()
    with stages(num_compile_stages(1)) as on_stage:
        artifacts = _Artifacts(model, _options(llmir_options), on_stage)
        first = artifacts.of("")
        num_threads = threads or num_cores()
        servers, workers = registry.select(names, llmir_side.file_format(first), num_threads)
        comparison = Comparison(
            Path(model),
            servers,
            workers,
            artifacts.of,
            num_threads=threads,
            serve_arguments={
                "": shlex.split(serve_args),
                UNCHUNKED: shlex.split(serve_args if unchunked_args is None else unchunked_args),
            },
            peers_dir=Path(peers_dir).absolute() if peers_dir else default_peers_dir(),
            on_stage=on_stage,
        )
        output = Output(
            model=f"{first.manifest.model.name}, {Path(model).name}",
            command=_command(ctx, model),
            machine=machine,
            failed=comparison.failed,
            table_file=None if table_file is None else Path(table_file),
            json_file=None if json_file is None else Path(json_file),
        )
        try:
            comparison.run(scenarios, alternations, output.update)
        except BaseException:
            if output.rows:  # what was measured is not lost with what was not
                click.echo(output.document())
            raise
    click.echo(output.document())


def _command(ctx: click.Context, model: str) -> str:
    """The command line, which names the model without its place."""
    command = command_line(ctx, without=("table_file", "peers_dir"))
    return command.replace(shlex.quote(model), shlex.quote(Path(model).name), 1)


def _options(texts: tuple[str, ...]) -> dict[str, Any]:
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise OptionError(f"--llmir-option {text!r} is not NAME=VALUE")
        found[name] = compile_value(value)
    return found


class _Artifacts:
    """llmir's artifact and its variants', compiled when first asked for."""

    def __init__(self, model: str, options: dict[str, Any], on_stage: StageHook) -> None:
        self._model = model
        self._options = options
        self._on_stage = on_stage
        self._found: dict[str, Artifact] = {}

    def of(self, variant: str) -> Artifact:
        from llmir import api
        from llmir.bench.peers.serving.llmir_server import VARIANTS

        if variant not in self._found:
            more = VARIANTS[variant] if variant else {}
            options = {**self._options, **more}
            self._found[variant] = api.compile(self._model, on_stage=self._on_stage, **options)
        return self._found[variant]
