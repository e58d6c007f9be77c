"""llmir chat: a conversation in the terminal."""

from __future__ import annotations

import sys
from typing import Any

import click

from llmir.api import LLM
from llmir.cli.model import ModelChoice, model_options, open_model, sampling_params
from llmir.cli.options import sampling_options
from llmir.engine import SamplingParams
from llmir.errors import RequestError

HELP = """\
/help    this list
/reset   forget the conversation
/exit    leave (Ctrl-D as well)
Ctrl-C stops an answer; at the prompt it leaves."""
EPILOG = """\b
Examples:
  llmir chat model.gguf
  llmir chat model.llmir --system "You answer in one sentence." --temperature 0.7

While chatting, /help lists what can be typed.
"""


@click.command(epilog=EPILOG)
@click.argument("model")
@click.option("--system", help="What the model is told before the conversation.")
@sampling_options
@model_options
def chat(
    system: str | None,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    seed: int | None,
    max_tokens: int | None,
    stop: tuple[str, ...],
    **choice: Any,
) -> None:
    """Talk with MODEL, a model or an artifact.

    Each line is a message; the model sees the whole conversation.  When standard input is
    not a terminal, its lines are the messages, and only the answers are printed.
    """
    llm = open_model(ModelChoice(**choice))
    params = sampling_params(
        llm,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        max_tokens=max_tokens,
        stop=stop,
    )
    Conversation(llm, params, system, interactive=sys.stdin.isatty()).run()


class Conversation:
    """The loop: read a message, stream the answer, remember both."""

    def __init__(
        self, llm: LLM, params: SamplingParams, system: str | None, *, interactive: bool
    ) -> None:
        self.llm = llm
        self.params = params
        self.interactive = interactive
        self._opening = [] if system is None else [{"role": "system", "content": system}]
        self.messages = list(self._opening)

    def run(self) -> None:
        if self.interactive:
            import readline  # noqa: F401  its import gives input() editing and history

            click.echo(f"{self.llm.artifact.manifest.model.name}: /help for help, /exit to leave")
        while (line := self._read()) is not None:
            command = line.strip()
            if command == "/exit":
                return
            if command == "/reset":
                self.messages = list(self._opening)
            elif command == "/help":
                click.echo(HELP)
            elif command.startswith("/"):
                click.echo(f"no command {command.split()[0]}\n{HELP}")
            elif command:
                self._ask(line)

    def _read(self) -> str | None:
        try:
            return input("> " if self.interactive else "")
        except EOFError:
            if self.interactive:
                click.echo()
            return None

    def _ask(self, text: str) -> None:
        self.messages.append({"role": "user", "content": text})
        try:
            answer = self._answer()
        except RequestError as error:
            # Too long for the model, most likely: what was said before still stands.
            self.messages.pop()
            if not self.interactive:
                raise
            click.echo(f"error: {error}\n/reset begins anew", err=True)
        else:
            self.messages.append({"role": "assistant", "content": answer})

    def _answer(self) -> str:
        """Print the answer as it comes, and return it, as far as it was let come."""
        parts: list[str] = []
        stream = self.llm.stream(self.llm.render_chat(self.messages), self.params, delta=True)
        try:
            for output in stream:
                parts.append(output.outputs[0].text)
                click.echo(parts[-1], nl=False)
        except KeyboardInterrupt:
            if not self.interactive:
                raise
            stream.close()  # type: ignore[attr-defined]  # a generator; closing frees its pages
        click.echo()
        return "".join(parts)
