"""The `llmir` command as tests use it: in this process, or in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest

from llmir.cli import main

LLMIR = [sys.executable, "-c", "import sys; from llmir.cli import main; sys.exit(main())"]


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


class Llmir:
    """llmir("run", artifact, "Hello") → its exit code and output."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object) -> Result:
        self._capsys.readouterr()
        code = main([str(a) for a in arguments])
        captured = self._capsys.readouterr()
        return Result(code, captured.out, captured.err)

    def ok(self, *arguments: object) -> str:
        """Its output, where it must succeed and have nothing to complain about."""
        result = self(*arguments)
        assert (result.code, result.err) == (0, "")
        return result.out

    def error(self, *arguments: object) -> tuple[int, str]:
        """Exit code and message, where it must fail with one message and no output."""
        result = self(*arguments)
        assert result.out == ""
        assert result.err.startswith("error: ")
        return result.code, result.err.removeprefix("error: ").rstrip("\n")


def spawn(*arguments: object, **options: Any) -> subprocess.Popen[bytes]:
    """The command in a process of its own, streams piped unless `options` say otherwise."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([*LLMIR, *map(str, arguments)], **{**pipes, **options})


def in_terminal(command: Iterable[object], *typed: bytes) -> tuple[int, str]:
    """Run a command in a terminal; returns its exit code and the screen.

    typed: lines to type, each once the prompt "> " stands there.
    """
    ours, its = os.openpty()
    lines = list(typed)
    screen = b""
    with subprocess.Popen([str(c) for c in command], stdin=its, stdout=its, stderr=its) as process:
        os.close(its)
        try:
            while piece := _read(ours):
                screen += piece
                if lines and screen.endswith(b"> "):
                    os.write(ours, lines.pop(0))
        finally:
            process.kill()  # of no effect where all went well: it has ended
            os.close(ours)
    return process.returncode, screen.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # Linux says EIO when the last one at the other end has left
        return b""
