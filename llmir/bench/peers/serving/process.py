"""A server's process: started on a free port, asked until it answers, stopped between rounds.

Between rounds its whole group gets SIGSTOP, so that no thread of it that spins or polls takes
the cores from the side whose turn it is.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import os
import shlex
import signal
import socket
import subprocess
import time
from typing import Any

from llmir.bench.peers.process import SideError
from llmir.bench.peers.serving.base import HOST, MODEL_NAME, Server
from llmir.bench.serve.client import Endpoint, refusal

START_TIMEOUT_S = 900.0
POLL_S = 0.02
END_TIMEOUT_S = 10.0
# The request whose answer ends the start.
FIRST_PROMPT = "Once upon a time there was a server that had just been started, and"
FIRST_OUTPUT_TOKENS = 16
_PR_SET_PDEATHSIG = 1


class ServerProcess:
    """A running server.

    load_s    from the start of the process to its first whole answer
    endpoint  where requests go
    """

    def __init__(self, server: Server) -> None:
        """Start it and wait for its first answer.  Raises SideError."""
        server.log.parent.mkdir(parents=True, exist_ok=True)
        self._log = server.log
        self._port = _free_port()
        command = [
            word.replace("{host}", HOST).replace("{port}", str(self._port))
            for word in server.command
        ]
        start = time.perf_counter()
        with open(server.log, "ab") as log:
            log.write(f"$ {shlex.join(command)}\n".encode())
            log.flush()
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a process group of its own, to be stopped whole
                preexec_fn=_end_with_parent,
            )
        self.endpoint = Endpoint(base_url=f"http://{HOST}:{self._port}/v1", model=MODEL_NAME)
        try:
            self._wait(start + START_TIMEOUT_S)
        except BaseException:
            self._kill()
            raise
        self.load_s = time.perf_counter() - start
        self.pause()

    @property
    def group(self) -> int:
        """The process group of all its processes."""
        return self._process.pid

    def resume(self) -> None:
        """Let it run."""
        self._signal(signal.SIGCONT)

    def pause(self) -> None:
        """Take it off the cores."""
        self._signal(signal.SIGSTOP)

    def check(self) -> None:
        """Raises SideError if it has ended."""
        status = self._process.poll()
        if status is not None:
            raise SideError(f"the server ended with status {status}; see {self._log.name}")

    def close(self) -> None:
        """End it; politely, then not."""
        self._signal(signal.SIGCONT)
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            self._process.terminate()
            self._process.wait(END_TIMEOUT_S)
        self._kill()

    def _kill(self) -> None:
        # Children that outlived their parent are still in its group.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        # A group has the number of its first process, which is ours until it was waited for.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def _wait(self, end: float) -> None:
        """Until a request is answered."""
        said = "nobody listened"
        while time.perf_counter() < end:
            self.check()
            with contextlib.suppress(OSError, http.client.HTTPException):
                status, body = self._ask()
                if status == 200:
                    return
                said = refusal(status, body)
                if status not in (404, 503):  # what servers say while they load
                    raise SideError(f"its first request was refused: {said}")
            time.sleep(POLL_S)
        raise SideError(f"no answer within {START_TIMEOUT_S:.0f} s: {said}")

    def _ask(self) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(HOST, self._port, timeout=START_TIMEOUT_S)
        fields: dict[str, Any] = {"model": MODEL_NAME, "prompt": FIRST_PROMPT}
        fields |= {"max_tokens": FIRST_OUTPUT_TOKENS, "temperature": 0, "ignore_eos": True}
        with contextlib.closing(connection):
            connection.request(
                "POST",
                "/v1/completions",
                json.dumps(fields),
                {"Content-Type": "application/json"},
            )
            answer = connection.getresponse()
            return answer.status, answer.read()


def _free_port() -> int:
    """A port that nobody listens on; another may take it before the server does."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _end_with_parent() -> None:
    """Have the kernel end the server when we end, which may be while it is stopped."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
