"""What a comparison of servers leaves behind: tables, and files that grow as it goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from llmir.bench import report
from llmir.bench.peers.output import replace_file
from llmir.bench.peers.serving.rounds import Cell
from llmir.bench.peers.serving.rows import ServingRow, ratio
from llmir.bench.peers.table import markdown

# What the measuring of an idle machine comes to: ticks are coarse.
DISTURBED_SHARE = 0.05


@dataclass(kw_only=True)
class Output:
    """Keeps the newest rows; `update` rewrites the files that are wanted.

    model, command   as the document names them
    machine          as the machine was before
    failed           side → why it could not be prepared; filled by the comparison
    table_file       the document; json_file: the rows
    """

    model: str
    command: str
    machine: Mapping[str, Any]
    failed: Mapping[str, str]
    table_file: Path | None = None
    json_file: Path | None = None
    rows: Sequence[ServingRow] = ()
    _begun: datetime = field(default_factory=lambda: datetime.now().astimezone())

    def update(self, rows: Sequence[ServingRow]) -> None:
        """Take the newest rows, and write them.  A file is replaced whole."""
        self.rows = rows
        if self.table_file is not None:
            replace_file(self.table_file, self.document() + "\n")
        if self.json_file is not None:
            data = [row.to_json(self.failed) for row in rows]
            replace_file(self.json_file, json.dumps(data, indent=1, ensure_ascii=False) + "\n")

    def document(self) -> str:
        """The rows as Markdown, with what they were measured on and by."""
        versions = {**report.versions()}
        for row in self.rows:
            for cell in row.cells:
                versions |= cell.versions
        begun, end = (
            t.isoformat(timespec="seconds") for t in (self._begun, datetime.now().astimezone())
        )
        abouts = {row.scenario.name: row.scenario.about for row in self.rows}
        parts = [
            f"- **Hardware**: {report.heading(self.machine)}\n"
            f"- **Versions**: {', '.join(f'{n} {v}' for n, v in sorted(versions.items()))}\n"
            f"- **Model**: {self.model}\n"
            f"- **Command**: `{self.command}`\n"
            f"- **Date**: {begun} to {end}",
            "\n".join(f"- `{name}`: {about}" for name, about in abouts.items()),
            summary(self.rows),
            details(self.rows),
        ]
        if warning := disturbance(self.rows):
            parts.insert(2, warning)
        if missing := failures(self.rows, self.failed):
            parts += ["Missing:", missing]
        return "\n\n".join(parts)


def summary(rows: Sequence[ServingRow]) -> str:
    """A line per figure: llmir, the best peer, the ratio of their medians."""
    lines = [["figure", "unit", "better", "llmir", "best peer", "", "llmir ÷ it", "÷ same file"]]
    for row in rows:
        best = next((c.median(row.value.name) for c in row.cells if c.name == row.best), None)
        lines.append(
            [
                row.name,
                row.value.unit,
                row.value.better,
                _number(row.own),
                _number(best),
                row.best,
                _number(row.ratio_to_best),
                _number(row.ratio_to_same_file),
            ]
        )
    return markdown(lines, left={0, 1, 2, 5})


def details(rows: Sequence[ServingRow]) -> str:
    """A line per figure and side."""
    head = "figure|side|median|min–max|rounds|llmir ÷ it|others' CPU|client's CPU"
    lines = [head.split("|")]
    for row in rows:
        for cell in row.cells:
            median = cell.median(row.value.name)
            figures = cell.figures.get(row.value.name, [])
            spread = f"{_number(min(figures))}–{_number(max(figures))}" if figures else ""
            lines.append(
                [
                    row.name,
                    cell.name,
                    _number(median),
                    spread,
                    str(len(figures)),
                    "" if cell is row.cells[0] else _number(ratio(row.own, median)),
                    _percent(cell.others_cpu_shares),
                    _percent(cell.client_cpu_shares),
                ]
            )
    return markdown(lines, left={0, 1})


def disturbance(rows: Sequence[ServingRow]) -> str:
    """A warning if the machine had other things to do; "" if not."""
    shares = [share for row in rows for cell in row.cells for share in cell.others_cpu_shares]
    most = max(shares, default=0.0)
    if most < DISTURBED_SHARE:
        return ""
    return (
        f"**Disturbed**: in a round other processes took {100 * most:.0f} % of the CPU time.  "
        "Engines whose threads wait for each other in loops lose far more than that share: "
        "take the figures again on an idle machine."
    )


def failures(rows: Sequence[ServingRow], unprepared: Mapping[str, str]) -> str:
    """What is missing in the tables, and why; "" if nothing is."""
    lines = [f"- {name}: not measured: {why}" for name, why in unprepared.items()]
    seen: dict[tuple[str, str], Cell] = {
        (row.scenario.name, cell.name): cell for row in rows for cell in row.cells if cell.error
    }
    lines += [f"- {name}, {side}: {cell.error}" for (name, side), cell in seen.items()]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _percent(shares: Sequence[float]) -> str:
    """The largest of the rounds: one disturbed round is to be seen."""
    return f"{100 * max(shares):.0f} %" if shares else ""
