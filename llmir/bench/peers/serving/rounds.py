"""The alternation: for each scenario A B C … A B C …, one round of each side at a time."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from llmir.bench.measure import cpu_seconds
from llmir.bench.peers.base import Side
from llmir.bench.peers.environments import StageHook
from llmir.bench.peers.pool import FIRST_GUESS_BYTES, ProcessPool
from llmir.bench.peers.process import SideError, SideProcess
from llmir.bench.peers.serving import groups
from llmir.bench.peers.serving.base import (
    CLIENT_CPU,
    OTHERS_CPU,
    PEAK_MEMORY,
    Round,
    Scenario,
    Server,
)
from llmir.bench.peers.serving.process import ServerProcess
from llmir.bench.serve.datasets import Vocabulary
from llmir.host import available_bytes

# A server that takes longer to start is started once: more rounds of it would take an hour.
SLOW_START_S = 30.0
AnySide = Server | Side
AnyProcess = ServerProcess | SideProcess


@dataclass(slots=True, kw_only=True)
class Cell:
    """What one side did in one scenario.

    figures            value → of each round, in their order; PEAK_MEMORY among them
    others_cpu_shares  of each round: CPU time of neither side nor client, of all there was
    client_cpu_shares  of each round: of one core, what the measuring client took
    is_own             llmir or a variant of it
    error              why there are fewer rounds than asked for; "": there are not
    """

    name: str
    is_same_file: bool
    is_own: bool
    figures: dict[str, list[float]] = field(default_factory=dict)
    others_cpu_shares: list[float] = field(default_factory=list)
    client_cpu_shares: list[float] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    error: str = ""

    def median(self, value: str) -> float | None:
        """Over the rounds; None: there is none."""
        found = self.figures.get(value)
        return statistics.median(found) if found else None

    def add(self, figures: dict[str, float]) -> None:
        """Take a round."""
        for name, figure in figures.items():
            if name == CLIENT_CPU:
                self.client_cpu_shares.append(figure)
            elif name == OTHERS_CPU:
                self.others_cpu_shares.append(figure)
            else:
                self.figures.setdefault(name, []).append(figure)


def start(side: AnySide) -> AnyProcess:
    """A side's process.  Raises SideError."""
    return ServerProcess(side) if isinstance(side, Server) else SideProcess(side)


class Alternation:
    """Runs scenarios on sides.  The arguments are those of pool.ProcessPool."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        begin: Callable[[AnySide], AnyProcess] = start,
        free_bytes: Callable[[], int] = available_bytes,
        first_guess_bytes: int = FIRST_GUESS_BYTES,
    ) -> None:
        self._vocabulary = vocabulary
        self.pool: ProcessPool[AnySide, AnyProcess] = ProcessPool(
            begin, free_bytes, first_guess_bytes
        )

    def run(
        self,
        scenario: Scenario,
        sides: Sequence[AnySide],
        alternations: int,
        on_stage: StageHook,
    ) -> Iterator[list[Cell]]:
        """All rounds of one scenario; yields the same cells, grown, after every alternation.

        A side that fails is left out of the scenario's later rounds.
        """
        cells = [
            Cell(
                name=side.name,
                is_same_file=side.is_same_file,
                # An offline side is llmir's if it is the first, as in `llmir bench peers`.
                is_own=side.is_own if isinstance(side, Server) else side is sides[0],
            )
            for side in sides
        ]
        for alternation in range(alternations):
            given = Round(vocabulary=self._vocabulary, seed=alternation)
            for side, cell in zip(sides, cells, strict=True):
                if cell.error or (scenario.restarts and self._is_slow(side)):
                    continue
                with on_stage(f"{scenario.name} {alternation + 1}/{alternations}: {side.name}"):
                    self._round(scenario, side, cell, given)
            yield cells

    def close(self) -> None:
        """End all processes."""
        self.pool.close()

    def _is_slow(self, side: AnySide) -> bool:
        return any(seconds > SLOW_START_S for seconds in self.pool.loads_s(side))

    def _round(self, scenario: Scenario, side: AnySide, cell: Cell, given: Round) -> None:
        try:
            if scenario.restarts:
                self.pool.end(side)
            process = self.pool.get(side)
            if isinstance(process, ServerProcess):
                figures = _of_server(scenario, process, given)
                cell.versions = dict(side.versions) if isinstance(side, Server) else {}
            else:
                figures = _of_worker(scenario, process, given)
                cell.versions = process.about.get("versions", {})
        except (SideError, OSError) as error:
            cell.error = str(error)
            self.pool.end(side)
            return
        cell.add(figures)
        if PEAK_MEMORY.name in figures:
            self.pool.note_peak(side, int(1e6 * figures[PEAK_MEMORY.name]))


def _of_server(scenario: Scenario, process: ServerProcess, given: Round) -> dict[str, float]:
    """A round's figures with the memory of the server's processes, and what others took."""
    process.resume()
    try:
        if not scenario.restarts:
            groups.forget_peaks(process.group)
        before, own_before = cpu_seconds(), groups.cpu_seconds(process.group)
        figures = scenario.measure(process, given)
        after, own_after = cpu_seconds(), groups.cpu_seconds(process.group)
        process.check()
        peak = groups.peak_bytes(process.group)
    finally:
        process.pause()
    if peak is not None:
        figures[PEAK_MEMORY.name] = peak / 1e6
    if before is not None and after is not None and not scenario.restarts:
        total, busy, client = (b - a for a, b in zip(before, after, strict=True))
        others = busy - client - (own_after - own_before)
        figures[OTHERS_CPU] = min(1.0, max(0.0, others) / max(total, 1e-9))
    return figures


def _of_worker(scenario: Scenario, process: SideProcess, given: Round) -> dict[str, float]:
    figures = scenario.measure(process, given)
    if process.peak_memory_bytes is not None:
        figures[PEAK_MEMORY.name] = process.peak_memory_bytes / 1e6
    return figures
