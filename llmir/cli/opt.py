"""llmir opt: run passes on MLIR text."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from llmir.cli.options import split_commas
from llmir.compiler.versions import check_tools
from llmir.errors import OptionError

EPILOG = """\b
Examples:
  llmir opt --list
  llmir opt -p cse-llm,dce-llm module.mlir
  llmir opt -p "select-providers{target=vulkan},lower-llm" - < module.mlir
"""


@click.command(epilog=EPILOG)
@click.option("-p", "--passes", default="", help="Passes in order, separated by commas.")
@click.option("-o", "--output", help="Write here instead of to standard output.")
@click.option(
    "--print-ir-after",
    multiple=True,
    metavar="PASS",
    help="Print the IR to stderr after PASS.  Repeatable, or separated by commas.",
)
@click.option("--list", "list_passes", is_flag=True, help="Print the names of all passes.")
@click.argument("file", required=False)
def opt(
    passes: str,
    output: str | None,
    print_ir_after: tuple[str, ...],
    list_passes: bool,
    file: str | None,
) -> None:
    """Run passes on FILE, a module as MLIR text, verify it after each, and print it.

    Without FILE, or with "-", standard input is read.  Without passes the module is only
    parsed and verified.
    """
    check_tools()  # the passes stand on IREE's compiler
    from llmir.passes.base import pass_names
    from llmir.passes.ir import parse_module
    from llmir.passes.manager import PassManager, verify
    from llmir.passes.pipelines import split_pipeline

    if list_passes:
        click.echo("\n".join(pass_names()))
        return
    manager = PassManager(print_ir_after=tuple(split_commas(print_ir_after)))
    module = parse_module(_read(file))
    verify(module, "in the input")
    manager.run(module, split_pipeline(passes))
    if output is None:
        click.echo(str(module))
    else:
        Path(output).write_text(f"{module}\n", encoding="utf-8")


def _read(file: str | None) -> str:
    data = sys.stdin.buffer.read() if file in (None, "-") else Path(str(file)).read_bytes()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise OptionError(f"{file or 'standard input'} is not UTF-8 text: {error}") from error
