"""What a comparison leaves behind: the document, and files that grow with every alternation."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from llmir.bench import report
from llmir.bench.limits import MachineLimits
from llmir.bench.peers import table
from llmir.bench.peers.metrics import plot_metrics
from llmir.bench.peers.plot import draw
from llmir.bench.peers.rows import PeerRow


@dataclass(kw_only=True)
class Output:
    """Keeps the newest rows; `update` rewrites the files that are wanted.

    model, command   as the document names them
    machine          as the machine was before
    failed           side → why it could not be prepared; filled by the comparison
    table_file       the document; json_file: the rows; plot_file: the drawing
    """

    model: str
    command: str
    machine: Mapping[str, Any]
    failed: Mapping[str, str]
    table_file: Path | None = None
    json_file: Path | None = None
    plot_file: Path | None = None
    rows: Sequence[PeerRow] = ()
    _limits: MachineLimits | None = None
    _begun: datetime = field(default_factory=lambda: datetime.now().astimezone())

    def update(self, rows: Sequence[PeerRow], limits: MachineLimits) -> None:
        """Take the newest rows, and write them.  A file is replaced whole."""
        self.rows, self._limits = rows, limits
        if self.table_file is not None:
            replace_file(self.table_file, self.document() + "\n")
        if self.json_file is not None:
            data = [row.to_json(self.failed) for row in rows]
            replace_file(self.json_file, json.dumps(data, indent=1, ensure_ascii=False) + "\n")
        if self.plot_file is not None:
            replace_file(self.plot_file, self._drawing())

    def document(self) -> str:
        """The rows as Markdown, with what they were measured on and by."""
        assert self._limits is not None, "nothing was measured"
        versions = {**report.versions(), **table.used_versions(self.rows)}
        begun, end = (
            t.isoformat(timespec="seconds") for t in (self._begun, datetime.now().astimezone())
        )
        parts = [
            f"- **Hardware**: {report.heading(self.machine)}\n"
            f"- **Limits**: {report.limits_line(self._limits)}\n"
            f"- **Versions**: {', '.join(f'{n} {v}' for n, v in sorted(versions.items()))}\n"
            f"- **Model**: {self.model}\n"
            f"- **Command**: `{self.command}`\n"
            f"- **Date**: {begun} to {end}",
            table.summary(self.rows),
            table.details(self.rows),
        ]
        if missing := table.failures(self.rows, self.failed):
            parts += ["Missing:", missing]
        return "\n\n".join(parts)

    def _drawing(self) -> str:
        found = {row.metric: row for row in self.rows}
        batches, depths = plot_metrics()
        return draw(
            [found[metric] for metric in batches if metric in found],
            [found[metric] for metric in depths if metric in found],
        )


def replace_file(path: Path, text: str) -> None:
    """Write beside and rename: who is interrupted keeps the last whole file."""
    beside = path.with_name(f".{path.name}.half")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)
