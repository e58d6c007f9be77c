"""The thread that steps: commands in, results out, and nothing shared but the queues.

caller's threads ── commands ──► [ core.step() … ] ── on_result, on_failure ──► called here
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmir.engine.core import EngineCore
from llmir.engine.request import StepResult

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Command:
    """Something to do between two steps, for one request."""

    request_id: str
    run: Callable[[EngineCore], None]


class StepThread:
    """Runs an EngineCore, which nobody else may touch from then on, on a thread of its own.

    Args:
        core: what is stepped while it has requests.
        on_result: takes each step's result; called on this thread.
        on_failure: takes the requests that a failed step had, or the one of a failed command,
            which are ended by then, and its error; called on this thread.  The others go on.
        on_stop: called last of all, with the error if the thread could not go on.
    """

    def __init__(
        self,
        core: EngineCore,
        *,
        on_result: Callable[[StepResult], None],
        on_failure: Callable[[Sequence[str], Exception], None],
        on_stop: Callable[[Exception | None], None],
    ) -> None:
        self._core = core
        self._on_result = on_result
        self._on_failure = on_failure
        self._on_stop = on_stop
        self._commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._main, name="llmir-step", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, command: Command) -> None:
        """Have a command run between two steps; commands keep their order."""
        self._commands.put(command)

    def stop(self) -> None:
        """End the thread after the commands submitted so far; requests are left as they are."""
        self._commands.put(None)

    def join(self) -> None:
        """Wait until the thread has ended."""
        if self._thread.is_alive():
            self._thread.join()

    def _main(self) -> None:
        try:
            while self._run_commands():
                self._step()
        except Exception as error:
            _log.exception("the engine cannot go on")
            self._on_stop(error)
        else:
            self._on_stop(None)

    def _run_commands(self) -> bool:
        """Run what was submitted, and wait for more while there is nothing to step."""
        while True:
            try:
                command = self._commands.get(block=not self._core.has_unfinished_requests())
            except queue.Empty:
                return True
            if command is None:
                return False
            self._run(command)

    def _run(self, command: Command) -> None:
        try:
            command.run(self._core)
        except Exception as error:
            _log.exception("a request could not be taken or ended")
            # If it cannot be ended either, nobody knows what it holds: that ends the engine.
            self._core.abort(command.request_id)
            self._on_failure([command.request_id], error)

    def _step(self) -> None:
        try:
            result = self._core.step()
        except Exception as error:
            failed = list(self._core.in_step)
            if not failed:
                raise  # not the step but the scheduler: nothing says who could be spared
            _log.exception("a step of %d requests failed", len(failed))
            for request_id in failed:
                self._core.abort(request_id)
            self._on_failure(failed, error)
        else:
            if result is not None:
                self._on_result(result)
