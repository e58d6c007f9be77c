"""How numbers and tables are printed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def check_writable(*paths: str | Path | None) -> None:
    """Before long work, whether its results can be written; None and "-" are no files.

    Raises OSError naming the path.  A file that is there keeps what is in it.
    """
    for given in paths:
        if given is None or given == "-":
            continue
        path = Path(given)
        existed = path.exists()
        if existed and not (path.is_file() or path.is_dir()):
            continue  # a pipe or a terminal: opening it may wait for who reads
        with path.open("ab"):
            pass
        if not existed:
            path.unlink()


def human_bytes(count: float) -> str:
    """1536 → "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def table(rows: Sequence[Sequence[object]], indent: int = 2) -> str:
    """Rows as text, columns aligned; the last column may be of any length."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in texts) for i in range(len(texts[0]))] if texts else []
    lines = (
        " " * indent + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))
        for row in texts
    )
    return "\n".join(line.rstrip() for line in lines)
