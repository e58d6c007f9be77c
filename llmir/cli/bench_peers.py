"""llmir bench peers: other engines on the same weights and token counts, alternating with llmir."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmir.cli.bench_common import (
    alternations_option,
    peers_dir_option,
    rows_option,
    table_option,
    threads_option,
)
from llmir.cli.options import split_commas
from llmir.cli.progress import StageHook, num_compile_stages, stages
from llmir.errors import OptionError

if TYPE_CHECKING:
    from llmir.artifact import Artifact
    from llmir.bench.peers.metrics import Metric

EPILOG = """\b
Examples:
  llmir bench peers model.gguf
  llmir bench peers model.gguf --peers llama.cpp:file --metrics prefill_128,prefill_128_t1
  llmir bench peers model.gguf --llmir-option decode_b16_d512:kv_dtype=f16 --json rows.json
"""


@click.command(epilog=EPILOG)
@click.argument("model")
@click.option(
    "--peers",
    "peer_names",
    multiple=True,
    metavar="PEER[:SIDE],…",
    help='Engines, or one side of an engine such as "llama.cpp:q4_0"; ":*" is all of its '
    'sides, "" none.  [default: all engines, with the sides known to be fast]',
)
@click.option(
    "--metrics",
    "metric_names",
    multiple=True,
    metavar="METRIC,…",
    help="decode_b{sequences}_d{depth} or prefill_{tokens}, each with _t{threads} if not all.  "
    "[default: the six of the results]",
)
@alternations_option("metric")
@threads_option
@click.option(
    "--llmir-option",
    "llmir_options",
    multiple=True,
    metavar="[METRIC:]NAME=VALUE",
    help="An option of llmir.compile, for all metrics or for one.  Repeatable.",
)
@peers_dir_option
@click.option(
    "--plot",
    "plot_file",
    metavar="FILE",
    help="Also measure over batch sizes and depths, and draw them as SVG.",
)
@table_option
@rows_option
@click.pass_context
def peers(
    ctx: click.Context,
    model: str,
    peer_names: tuple[str, ...],
    metric_names: tuple[str, ...],
    alternations: int,
    threads: int | None,
    llmir_options: tuple[str, ...],
    peers_dir: str | None,
    plot_file: str | None,
    table_file: str | None,
    json_file: str | None,
) -> None:
    """Compare llmir with other engines on MODEL, a GGUF file.

    Each engine runs in a virtual environment of its own, made the first time.  All compute
    the same weights and token counts, in turn: a round of one metric each, again and again.
    The table has medians over the rounds, and what llmir's are of them.  The files are
    rewritten after every round of all sides.
    """
    from llmir.bench import report
    from llmir.bench.peers import llmir_side
    from llmir.bench.peers.environments import default_peers_dir
    from llmir.bench.peers.metrics import DEFAULT_METRICS, Metric, plot_metrics
    from llmir.bench.peers.output import Output
    from llmir.bench.peers.registry import PEERS, select
    from llmir.bench.peers.run import Comparison
    from llmir.host import num_cores

    metrics = [Metric.parse(n) for n in split_commas(metric_names) or DEFAULT_METRICS]
    if plot_file is not None:
        batches, depths = plot_metrics()
        metrics += [*batches, *depths]
    metrics = list(dict.fromkeys(metrics))
    names = split_commas(peer_names) if peer_names else list(PEERS)
    options = _Options(llmir_options, metrics)
    num_threads = threads or num_cores()
    machine = report.hardware()
    with stages(num_compile_stages(1)) as on_stage:
        artifacts = _Artifacts(model, options, on_stage)
        first = artifacts.of(metrics[0])
        comparison = Comparison(
            Path(model),
            select(names, llmir_side.file_format(first), num_threads),
            artifacts.of,
            num_threads=num_threads,
            peers_dir=Path(peers_dir).absolute() if peers_dir else default_peers_dir(),
            on_stage=on_stage,
        )
        output = Output(
            model=f"{first.manifest.model.name}, {Path(model).name}",
            command=_command(ctx),
            machine=machine,
            failed=comparison.failed,
            table_file=_path(table_file),
            json_file=_path(json_file),
            plot_file=_path(plot_file),
        )
        try:
            comparison.run(metrics, alternations, output.update)
        except BaseException:
            if output.rows:  # what was measured is not lost with what was not
                click.echo(output.document())
            raise
    click.echo(output.document())


def _path(name: str | None) -> Path | None:
    return None if name is None else Path(name)


class _Options:
    """What llmir.compile is given, for each metric."""

    def __init__(self, texts: Sequence[str], metrics: Sequence[Metric]) -> None:
        self._for_all: dict[str, Any] = {}
        self._for_one: dict[str, dict[str, Any]] = {}
        known = {metric.name for metric in metrics}
        for text in texts:
            before, equals, value = text.partition("=")
            where, colon, name = before.rpartition(":")
            if not equals or not name.isidentifier():
                raise OptionError(f"--llmir-option {text!r} is not [METRIC:]NAME=VALUE")
            if colon and where not in known:
                raise OptionError(
                    f"--llmir-option {text!r}: {where} is not measured; "
                    f"measured are {', '.join(sorted(known))}"
                )
            options = self._for_one.setdefault(where, {}) if colon else self._for_all
            options[name] = compile_value(value)

    def of(self, metric: Metric) -> dict[str, Any]:
        return {**self._for_all, **self._for_one.get(metric.name, {})}


def compile_value(text: str) -> Any:
    """A number, true, false, null or a list as JSON writes it; else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def gguf_file(model: str) -> None:
    """Raises OptionError if peers cannot have the model as well."""
    from llmir.artifact import is_artifact

    if is_artifact(model) or not Path(model).is_file():
        raise OptionError(f"{model} is no GGUF file; peers need the file that llmir compiles")


class _Artifacts:
    """llmir's artifact for each metric, compiled when it is first asked for."""

    def __init__(self, model: str, options: _Options, on_stage: StageHook) -> None:
        gguf_file(model)
        self._model = model
        self._options = options
        self._on_stage = on_stage
        self._found: dict[str, Artifact] = {}

    def of(self, metric: Metric) -> Artifact:
        from llmir import api

        options = self._options.of(metric)
        key = json.dumps(options, sort_keys=True)
        if key not in self._found:
            self._found[key] = api.compile(self._model, on_stage=self._on_stage, **options)
        return self._found[key]


def _command(ctx: click.Context) -> str:
    """The command line that gives this measurement again, defaults included."""
    words = ctx.command_path.split()
    for param in ctx.command.params:
        value = ctx.params[param.name or ""]
        if param.name in ("json_file", "table_file", "peers_dir") or value is None:
            continue
        if isinstance(param, click.Argument):
            words.append(Path(value).name)
            continue
        if param.name == "plot_file":
            value = Path(value).name
        for item in value if isinstance(value, tuple) else (value,):
            words += [param.opts[0], str(item)]
    return shlex.join(words)
