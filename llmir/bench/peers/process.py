"""A side's process: started, asked, stopped between its rounds, ended.

Between rounds it gets SIGSTOP, as some engines' threads spin while they wait for work and
would take the cores from the side whose turn it is.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from llmir.bench.peers.base import Side

LOAD_TIMEOUT_S = 900.0
ROUND_TIMEOUT_S = 900.0
END_TIMEOUT_S = 10.0
SERVE = Path(__file__).parent / "workers" / "serve.py"


class SideError(Exception):
    """A side that could not do what it was asked; the run goes on without it."""


class SideProcess:
    """One running side.

    load_s             from the start of the process to being ready
    peak_memory_bytes  of the last command; None: unknown
    """

    def __init__(self, side: Side) -> None:
        """Start it and load the model.  Raises SideError."""
        side.log.parent.mkdir(parents=True, exist_ok=True)
        self._log = side.log
        start = time.perf_counter()
        with open(side.log, "ab") as log:
            self._process = subprocess.Popen(
                side.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # a process group of its own, to be stopped whole
            )
        self._unread = b""
        try:
            self.about = self._ask(dict(side.load), LOAD_TIMEOUT_S)
        except BaseException:
            self.kill()
            raise
        self.load_s = time.perf_counter() - start
        self.pause()

    def ask(self, command: dict[str, Any], timeout_s: float = ROUND_TIMEOUT_S) -> dict[str, Any]:
        """Send a command to the process, which runs only meanwhile, and return its answer.

        Raises SideError, after which the process may be dead.
        """
        self._signal(signal.SIGCONT)
        try:
            return self._ask(command, timeout_s)
        finally:
            self.pause()

    def pause(self) -> None:
        """Take it off the cores until the next `ask`."""
        self._signal(signal.SIGSTOP)

    def close(self) -> None:
        """End it; politely, then not."""
        self._signal(signal.SIGCONT)
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self._process.stdin.close()
            self._process.wait(END_TIMEOUT_S)
        self.kill()

    def kill(self) -> None:
        """End it and whatever it started."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _signal(self, number: signal.Signals) -> None:
        # A group has the number of its first process, which is ours until it was waited for.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def _ask(self, command: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        assert self._process.stdin is not None
        if self._process.returncode is not None:
            raise SideError(f"its process is gone; see {self._log.name}")
        try:
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise SideError(f"its process is gone; see {self._log.name}") from error
        answer: dict[str, Any] = json.loads(self._line(timeout_s))
        self.peak_memory_bytes: int | None = answer.get("peak_memory_bytes")
        if "error" in answer:
            raise SideError(answer["error"])
        return answer

    def _line(self, timeout_s: float) -> bytes:
        assert self._process.stdout is not None
        end = time.monotonic() + timeout_s
        pipe = self._process.stdout.fileno()
        while b"\n" not in self._unread:
            left = end - time.monotonic()
            if left <= 0 or not select.select([pipe], [], [], left)[0]:
                self.kill()
                raise SideError(f"no answer within {timeout_s:.0f} s")
            piece = os.read(pipe, 1 << 16)
            if not piece:
                status = self._process.wait()
                self.kill()
                raise SideError(f"its process ended with status {status}; see {self._log.name}")
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        return line
