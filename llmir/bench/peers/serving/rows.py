"""A row: one figure of a scenario, of every side, with llmir's ratio to the best peer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmir.bench.peers.base import LLMIR
from llmir.bench.peers.serving.base import PEAK_MEMORY, Scenario, Value
from llmir.bench.peers.serving.rounds import Cell


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingRow:
    """One figure of one scenario.

    cells               llmir's first, then its variants and the peers' sides; failed ones too
    best                the best peer's side; "": no peer answered
    ratio_to_best       llmir's median over that side's, whichever way is better
    ratio_to_same_file  the same, to the best peer with the file's own weights
    """

    scenario: Scenario
    value: Value
    cells: tuple[Cell, ...]
    best: str
    ratio_to_best: float | None
    ratio_to_same_file: float | None

    @property
    def name(self) -> str:
        """ "shared/output_throughput"."""
        return f"{self.scenario.name}/{self.value.name}"

    @property
    def own(self) -> float | None:
        """llmir's median."""
        return self.cells[0].median(self.value.name)

    def to_json(self, failed: Mapping[str, str]) -> dict[str, Any]:
        """For programs, with the names of `llmir bench peers`.

        failed: side → why it could not be prepared; it is in no cell.
        """
        name = self.value.name
        medians = {cell.name: cell.median(name) for cell in self.cells if not cell.is_own}
        variants = {cell.name: cell.median(name) for cell in self.cells[1:] if cell.is_own}
        return {
            "metric": self.name,
            "unit": self.value.unit,
            "better": self.value.better,
            "about": self.scenario.about,
            "llmir": self.own,
            "peers": {side: median for side, median in medians.items() if median is not None},
            "llmir_variants": {s: median for s, median in variants.items() if median is not None},
            "best": self.best or None,
            "ratio_to_best": self.ratio_to_best,
            "ratio_to_same_file": self.ratio_to_same_file,
            "rounds": {cell.name: cell.figures.get(name, []) for cell in self.cells},
            "others_cpu_share": {cell.name: cell.others_cpu_shares for cell in self.cells},
            "client_cpu_share": {cell.name: cell.client_cpu_shares for cell in self.cells},
            "errors": {**failed, **{cell.name: cell.error for cell in self.cells if cell.error}},
        }


def make_rows(scenario: Scenario, cells: Sequence[Cell]) -> list[ServingRow]:
    """A row for each of the scenario's values, and one for memory.  cells: llmir's first."""
    assert cells[0].name == LLMIR, "llmir's cell is the first"
    return [_row(scenario, value, cells) for value in (*scenario.values, PEAK_MEMORY)]


def ratio(own: float | None, other: float | None) -> float | None:
    """`own` over the other."""
    return own / other if own is not None and other else None


def _row(scenario: Scenario, value: Value, cells: Sequence[Cell]) -> ServingRow:
    peers = [cell for cell in cells if not cell.is_own]
    best = _best(value, peers)
    same = _best(value, [cell for cell in peers if cell.is_same_file])
    own = cells[0].median(value.name)
    return ServingRow(
        scenario=scenario,
        value=value,
        cells=tuple(cells),
        best=best.name if best else "",
        ratio_to_best=ratio(own, best.median(value.name)) if best else None,
        ratio_to_same_file=ratio(own, same.median(value.name)) if same else None,
    )


def _best(value: Value, cells: Sequence[Cell]) -> Cell | None:
    known = [cell for cell in cells if cell.median(value.name) is not None]
    choose = max if value.better == "higher" else min
    return choose(known, key=lambda cell: cell.median(value.name) or 0.0, default=None)
