"""What the commands of `llmir bench` share: lists of counts, opening MODEL, the JSON document."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from llmir import api, artifact
from llmir.cli.output import print_json
from llmir.cli.progress import num_compile_stages, stages


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


json_file_option = click.option(
    "--json",
    "json_file",
    is_flag=False,
    flag_value="-",
    metavar="[FILE]",
    help='Write one JSON document to FILE; without FILE, or with "-", to standard output '
    "in place of the table.",
)


def alternations_option(of: str) -> Callable[[Any], Any]:
    """Rounds of a comparison; of: what each of them is a round of."""
    return click.option(
        "--alternations",
        type=click.IntRange(1),
        default=5,
        show_default=True,
        help=f"Rounds of each side in each {of}.",
    )


threads_option = click.option(
    "--threads", type=click.IntRange(1), help="CPU threads.  [default: one per core]"
)
peers_dir_option = click.option(
    "--peers-dir",
    metavar="DIR",
    help="Where the peers' environments and model files are made.  [default: ~/.cache/llmir-peers]",
)
table_option = click.option(
    "--table", "table_file", metavar="FILE", help="Also write what is printed."
)
rows_option = click.option(
    "--json", "json_file", metavar="FILE", help="Also write the rows as JSON."
)


def write_document(
    document: Mapping[str, Any], json_file: str | None, texts: Sequence[str]
) -> None:
    """The document where --json says; but for "-", the machine and `texts` on standard output."""
    from llmir.bench import report

    if json_file == "-":
        print_json(document)
        return
    click.echo(report.heading(document["hardware"]))
    for text in texts:
        click.echo(text)
    if json_file is not None:
        Path(json_file).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def open_model(model: str) -> artifact.Artifact:
    """An artifact, or the one that a model is compiled into."""
    if artifact.is_artifact(model):
        return artifact.load(model)
    with stages(num_compile_stages(1)) as on_stage:
        return api.compile(model, on_stage=on_stage)


def command_line(ctx: click.Context, *, without: Sequence[str] = ()) -> str:
    """The command line that gives this measurement again, defaults included.

    without: parameters to leave out besides --json, such as secrets.
    """
    words = ctx.command_path.split()
    for param in ctx.command.params:
        value = ctx.params[param.name or ""]
        if value is None or param.name in ("json_file", *without):
            continue
        if isinstance(param, click.Option) and isinstance(value, bool):
            words += param.opts[:1] if value else param.secondary_opts[:1]
            continue
        for item in value if isinstance(value, tuple) else (value,):
            text = ",".join(map(str, item)) if isinstance(item, list) else str(item)
            words += [text] if isinstance(param, click.Argument) else [param.opts[0], text]
    return shlex.join(words)
