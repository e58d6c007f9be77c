"""A metric's row: medians, ratios of medians, the share of the machine's limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmir.bench.costs import StepCosts
from llmir.bench.limits import MachineLimits
from llmir.bench.peers.base import LLMIR
from llmir.bench.peers.metrics import UNIT, Metric
from llmir.bench.peers.rounds import Cell


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerRow:
    """One metric.

    cells              llmir's first, then the peers' sides; those that failed too
    best               the fastest peer's side; "": no peer answered
    ratio_to_best      llmir's median over the fastest side's; None where either is missing
    ratio_to_same_file the same, to the fastest side that computes with the file's own weights
    share_of_limit     of llmir's median: what it cannot avoid, of what the machine can do
    limit              which limit that is: "read bandwidth", "f32 arithmetic"
    """

    metric: Metric
    cells: tuple[Cell, ...]
    best: str
    ratio_to_best: float | None
    ratio_to_same_file: float | None
    share_of_limit: float | None
    limit: str

    @property
    def llmir(self) -> Cell:
        return self.cells[0]

    def to_json(self, failed: Mapping[str, str]) -> dict[str, Any]:
        """For programs.  Rates are tokens per second; `rounds` are what the medians are of.

        failed: side → why it could not be prepared; it is in no cell.
        """
        peers = [cell for cell in self.cells if cell.name != LLMIR]
        return {
            "metric": self.metric.name,
            "unit": UNIT,
            "llmir": self.llmir.median,
            "peers": {cell.name: cell.median for cell in peers if cell.rates},
            "best": self.best or None,
            "ratio_to_best": self.ratio_to_best,
            "ratio_to_same_file": self.ratio_to_same_file,
            "share_of_limit": self.share_of_limit,
            "limit": self.limit,
            "rounds": {cell.name: cell.rates for cell in self.cells},
            "others_cpu_share": {cell.name: cell.others_cpu_shares for cell in self.cells},
            "kv_dtype": {cell.name: cell.kv_dtype for cell in self.cells},
            "load_s": {cell.name: cell.load_s for cell in self.cells},
            "peak_memory_bytes": {cell.name: cell.peak_memory_bytes for cell in self.cells},
            "errors": {**failed, **{cell.name: cell.error for cell in self.cells if cell.error}},
        }


def make_row(
    metric: Metric, cells: Sequence[Cell], costs: StepCosts, limits: MachineLimits
) -> PeerRow:
    """The statistics of a row.  cells: llmir's first; costs: of its module."""
    own = cells[0].median
    best = _fastest(cells[1:])
    same = _fastest([cell for cell in cells[1:] if cell.is_same_file])
    share, limit = _share(metric, own, costs, limits)
    return PeerRow(
        metric=metric,
        cells=tuple(cells),
        best=best.name if best else "",
        ratio_to_best=ratio(own, best),
        ratio_to_same_file=ratio(own, same),
        share_of_limit=share,
        limit=limit,
    )


def ratio(own: float | None, other: Cell | None) -> float | None:
    """`own` over the other's median."""
    if own is None or other is None or other.median is None:
        return None
    return own / other.median


def _fastest(cells: Sequence[Cell]) -> Cell | None:
    return max((c for c in cells if c.rates), key=lambda c: c.median or 0.0, default=None)


def _share(
    metric: Metric, rate: float | None, costs: StepCosts, limits: MachineLimits
) -> tuple[float | None, str]:
    if metric.is_prefill:
        label, work = "f32 arithmetic", metric.unavoidable_flops(costs)
        most = limits.f32_flops_per_s
    else:
        label, work = "read bandwidth", metric.unavoidable_bytes(costs)
        most = limits.read_bytes_per_s
    if metric.threads not in (None, limits.num_threads):
        return None, label  # the limit of so many threads was not measured
    return (None if rate is None else work / metric.tokens_timed * rate / most), label
