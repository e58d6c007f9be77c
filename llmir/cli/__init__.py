"""The `llmir` command: one file per subcommand, imported when it is used.

`main` is the only place where an error becomes a line on stderr and an exit code.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

import click

import llmir
from llmir.cli.exit_codes import EXIT_CODES, INTERRUPTED, USAGE, exit_code_of
from llmir.cli.lazy_group import LazyGroup
from llmir.errors import LlmirError

# name → (module:attribute, what `llmir --help` says of it)
COMMANDS = {
    "run": ("run:run", "Ask a model one question and print the answer as it comes."),
    "chat": ("chat:chat", "Talk with a model."),
    "serve": ("serve:serve", "Serve a model over HTTP, to OpenAI's clients."),
    "compile": ("compile:compile_", "Compile a model into an artifact."),
    "inspect": ("inspect:inspect", "Show what is in an artifact."),
    "targets": ("targets:targets", "List what can be compiled for, and what runs here."),
    "bench": ("bench:bench", "Measure how fast an artifact is."),
    "verify": ("verify:verify", "Check that devices, or two artifacts, give the same answers."),
    "export-inputs": ("export_inputs:export_inputs", "Write the inputs of a step to files."),
    "opt": ("opt:opt", "Run passes on a file of MLIR."),
}

EPILOG = "\n".join(
    [
        "\b",
        "Examples:",
        '  llmir run model.gguf "What is the capital of France?"',
        "  llmir compile model.gguf -o model.llmir --target cpu",
        "  llmir chat model.llmir",
        "",
        "\b",
        "Exit codes:",
        *(f"  {code:<5}{meaning}" for code, meaning in EXIT_CODES.items()),
    ]
)


@click.group(
    cls=LazyGroup,
    package="llmir.cli",
    lazy_commands=COMMANDS,
    epilog=EPILOG,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(llmir.__version__, prog_name="llmir", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Compile large language models with IREE, and run them.

    MODEL is a GGUF file, a Hugging Face directory, or a hub id such as
    "HuggingFaceTB/SmolLM2-135M-Instruct".  An ARTIFACT is the directory that `llmir
    compile` makes of a model.  Where a command takes either, a model is compiled first,
    once, into a cache (the directory in LLMIR_CACHE, by default ~/.cache/llmir).
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(USAGE)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    argv: the arguments without the program's name; None: the process's own.
    """
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character must not end an answer half way.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        # Not `cli.main`, which has exit codes and words of its own for all of these.
        with cli.make_context("llmir", list(sys.argv[1:] if argv is None else argv)) as context:
            cli.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as exit:
        return exit.exit_code
    except click.ClickException as error:
        return _fail(_usage(error), USAGE)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has left, as `| head` does: nobody is there to be told.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (LlmirError, OSError) as error:
        return _fail(_message(error), exit_code_of(error))
    return 0


def _open_closed_streams() -> None:
    """A stream that was closed before we began (`<&-`, a daemon's) reads and writes nothing."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115  for good
            setattr(sys, name, stream)


def _fail(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def _usage(error: click.ClickException) -> str:
    message = error.format_message()
    message = message[:1].lower() + message[1:].rstrip(".")
    context = getattr(error, "ctx", None)
    return message if context is None else f"{message} (see {context.command_path} --help)"


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}"
    return "\n".join([str(error), *getattr(error, "__notes__", ())])
