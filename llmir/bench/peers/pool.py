"""The processes of sides: a process lives on between its rounds, stopped.

When memory runs short, the process whose turn is farthest in the past is ended; it starts again
at its next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from llmir.host import available_bytes

# What is to stay free beside the processes.
RESERVE_BYTES = 1 << 30
# A side that has not run yet may need this much, of a small model.
FIRST_GUESS_BYTES = 4 << 30


class Running(Protocol):
    """A process that was started, and is stopped until its turn.  load_s: until it was ready."""

    load_s: float

    def close(self) -> None:
        """End it."""


Startable = TypeVar("Startable")
Process = TypeVar("Process", bound=Running)


class ProcessPool(Generic[Startable, Process]):
    """Keeps the processes of sides.

    Args:
        start: starts a side's process.
        free_bytes: how much memory there is for more.
        first_guess_bytes: what a side may need that has not run yet.
    """

    def __init__(
        self,
        start: Callable[[Startable], Process],
        free_bytes: Callable[[], int] = available_bytes,
        first_guess_bytes: int = FIRST_GUESS_BYTES,
    ) -> None:
        self._start = start
        self._free_bytes = free_bytes
        self._first_guess_bytes = first_guess_bytes
        self._running: dict[Startable, Process] = {}  # the one that ran last is last
        self._loads_s: dict[Startable, list[float]] = {}
        self._peaks: dict[Startable, int] = {}

    @property
    def running(self) -> list[Startable]:
        """The sides that have a process, the one that ran last at the end."""
        return list(self._running)

    def get(self, side: Startable) -> Process:
        """The side's process, started if it is not running."""
        if side in self._running:
            self._running[side] = self._running.pop(side)
            return self._running[side]
        needed = self._peaks.get(side, self._first_guess_bytes) + RESERVE_BYTES
        while self._running and self._free_bytes() < needed:
            self.end(next(iter(self._running)))
        process = self._running[side] = self._start(side)
        self._loads_s.setdefault(side, []).append(process.load_s)
        return process

    def loads_s(self, side: Startable) -> list[float]:
        """How long each start of the side took."""
        return self._loads_s.get(side, [])

    def note_peak(self, side: Startable, num_bytes: int) -> None:
        """Remember how much memory the side needed."""
        self._peaks[side] = max(num_bytes, self._peaks.get(side, 0))

    def end(self, side: Startable) -> None:
        """End the side's process, if there is one."""
        process = self._running.pop(side, None)
        if process is not None:
            process.close()

    def close(self) -> None:
        """End all."""
        for side in self.running:
            self.end(side)
