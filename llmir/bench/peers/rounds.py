"""The alternation: for each metric A B C … A B C …, one round of each side at a time."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from llmir.bench.peers.base import Side
from llmir.bench.peers.environments import StageHook
from llmir.bench.peers.metrics import Metric
from llmir.bench.peers.pool import FIRST_GUESS_BYTES, ProcessPool
from llmir.bench.peers.process import SideError, SideProcess
from llmir.host import available_bytes


@dataclass(slots=True, kw_only=True)
class Cell:
    """What one side did in one metric.

    rates              tokens per second of each round, in their order
    load_s             median over the starts of its process, so far
    peak_memory_bytes  of its process, in the rounds of this metric
    others_cpu_shares  of each round: what else the machine was busy with; None: unknown
    error              why there are fewer rounds than asked for; "": there are not
    """

    name: str
    is_same_file: bool
    rates: list[float] = field(default_factory=list)
    load_s: float | None = None
    peak_memory_bytes: int | None = None
    others_cpu_shares: list[float | None] = field(default_factory=list)
    kv_dtype: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    error: str = ""

    @property
    def median(self) -> float | None:
        return statistics.median(self.rates) if self.rates else None

    @property
    def others_cpu_share(self) -> float | None:
        """Median over the rounds; None where one of them does not know."""
        shares = [share for share in self.others_cpu_shares if share is not None]
        whole = shares and len(shares) == len(self.others_cpu_shares)
        return statistics.median(shares) if whole else None


class Runner:
    """Measures the rounds of metrics; the arguments are those of pool.ProcessPool."""

    def __init__(
        self,
        start: Callable[[Side], SideProcess] = SideProcess,
        free_bytes: Callable[[], int] = available_bytes,
        first_guess_bytes: int = FIRST_GUESS_BYTES,
    ) -> None:
        self.pool = ProcessPool(start, free_bytes, first_guess_bytes)

    def run(
        self,
        metric: Metric,
        sides: Sequence[Side],
        alternations: int,
        on_stage: StageHook,
    ) -> Iterator[list[Cell]]:
        """All rounds of one metric; yields the same cells, grown, after every alternation.

        A side that fails is left out of the metric's later rounds.
        """
        cells = [Cell(name=side.name, is_same_file=side.is_same_file) for side in sides]
        for alternation in range(alternations):
            for side, cell in zip(sides, cells, strict=True):
                if cell.error:
                    continue
                with on_stage(f"{metric.name} {alternation + 1}/{alternations}: {side.name}"):
                    self._round(metric, side, cell, seed=alternation)
            yield cells

    def close(self) -> None:
        """End all processes."""
        self.pool.close()

    def _round(self, metric: Metric, side: Side, cell: Cell, seed: int) -> None:
        try:
            process = self.pool.get(side)
            answer = process.ask(metric.command(seed))
        except (SideError, OSError) as error:
            cell.error = str(error)
            self.pool.end(side)
            return
        cell.rates.append(metric.tokens_timed / answer["seconds"])
        cell.others_cpu_shares.append(answer.get("others_cpu_share"))
        cell.load_s = statistics.median(self.pool.loads_s(side))
        cell.kv_dtype = process.about.get("kv_dtype", "")
        cell.versions = process.about.get("versions", {})
        peak = answer["peak_memory_bytes"]
        if peak is not None:
            cell.peak_memory_bytes = max(peak, cell.peak_memory_bytes or 0)
            self.pool.note_peak(side, peak)
