"""A whole comparison: sides prepared, limits, every metric's rounds, rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from llmir.artifact import Artifact
from llmir.bench.limits import MachineLimits
from llmir.bench.peers import llmir_side
from llmir.bench.peers.base import Side, SidePlan
from llmir.bench.peers.environments import StageHook
from llmir.bench.peers.metrics import Metric
from llmir.bench.peers.pool import FIRST_GUESS_BYTES
from llmir.bench.peers.prepare import Preparer
from llmir.bench.peers.process import SideError
from llmir.bench.peers.rounds import Cell, Runner
from llmir.bench.peers.rows import PeerRow, make_row
from llmir.bench.worker import run_job
from llmir.errors import LlmirError

RowsHook = Callable[[Sequence[PeerRow], MachineLimits], None]


class Comparison:
    """The sides of one model; `run` measures.

    artifact_for: of each metric, as llmir may be compiled otherwise for one of them
    failed:       side → why it could not be prepared; it is in no row
    """

    def __init__(
        self,
        model: Path,
        plans: Sequence[SidePlan],
        artifact_for: Callable[[Metric], Artifact],
        *,
        num_threads: int,
        peers_dir: Path,
        on_stage: StageHook,
    ) -> None:
        self._plans = plans
        self._artifact_for = artifact_for
        self._num_threads = num_threads
        self._peers_dir = peers_dir
        self._on_stage = on_stage
        self._first_guess_bytes = max(FIRST_GUESS_BYTES, 2 * model.stat().st_size)
        self._preparer = Preparer(model, peers_dir, on_stage)
        self._sides: dict[int, list[Side]] = {}
        self._own: dict[tuple[Path, int], Side] = {}
        self.failed: dict[str, str] = {}

    def run(
        self, metrics: Sequence[Metric], alternations: int, on_rows: RowsHook
    ) -> tuple[list[PeerRow], MachineLimits]:
        """Measure.  The limits are those of all threads, the better of before and after.

        on_rows is given what there is so far, after every alternation and at the end: the last
        of the rows may have fewer rounds, and until the end the limits are those of before.

        Raises OptionError, before anything is measured, for a metric that cannot fit;
        DeviceError.
        """
        for metric in metrics:
            llmir_side.check(self._artifact_for(metric), [metric])
        chosen = [self._sides_for(metric, metrics) for metric in metrics]
        limits = self._limits()
        done: dict[Metric, list[Cell]] = {}

        def rows() -> list[PeerRow]:
            return [
                make_row(metric, cells, llmir_side.costs_of(self._artifact_for(metric)), limits)
                for metric, cells in done.items()
            ]

        runner = Runner(first_guess_bytes=self._first_guess_bytes)
        try:
            for metric, sides in zip(metrics, chosen, strict=True):
                for cells in runner.run(metric, sides, alternations, self._on_stage):
                    done[metric] = cells
                    on_rows(rows(), limits)
        finally:
            runner.close()
        limits = limits.better(self._limits())
        on_rows(rows(), limits)
        return rows(), limits

    def _sides_for(self, metric: Metric, metrics: Sequence[Metric]) -> list[Side]:
        threads = metric.threads or self._num_threads
        if threads not in self._sides:
            self._sides[threads] = [
                side for plan in self._plans if (side := self._prepared(plan, threads))
            ]
        artifact = self._artifact_for(metric)
        key = (artifact.path, threads)
        if key not in self._own:
            same = [m for m in metrics if self._artifact_for(m).path == artifact.path]
            logs = self._peers_dir / "logs"
            self._own[key] = llmir_side.side(artifact, same, threads, logs)
        return [self._own[key], *self._sides[threads]]

    def _prepared(self, plan: SidePlan, threads: int) -> Side | None:
        """The side; None if it cannot be had, and `failed` says why: the others go on."""
        try:
            return self._preparer.side(plan, threads)
        except (SideError, LlmirError, OSError) as error:
            self.failed[plan.name] = str(error)
            return None

    def _limits(self) -> MachineLimits:
        with self._on_stage("this machine's limits"):
            return MachineLimits(**run_job({"job": "limits", "num_threads": self._num_threads}))
