"""The rows as Markdown: one table of ratios, one of every side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llmir.bench.peers.rounds import Cell
from llmir.bench.peers.rows import PeerRow, ratio


def summary(rows: Sequence[PeerRow]) -> str:
    """A line per metric: llmir, the best peer, the ratios of their medians, the share."""
    lines = [["metric", "llmir", "best peer", "", "ratio", "to same file", "share of limit"]]
    for row in rows:
        best = next((cell for cell in row.cells[1:] if cell.name == row.best), None)
        lines.append(
            [
                row.metric.name,
                _rate(row.llmir.median),
                _rate(best.median if best else None),
                row.best,
                _ratio(row.ratio_to_best),
                _ratio(row.ratio_to_same_file),
                f"{_percent(row.share_of_limit)} {row.limit}".strip(),
            ]
        )
    return markdown(lines, left={0, 3, 6})


def details(rows: Sequence[PeerRow]) -> str:
    """A line per metric and side.  MB are 10⁶ bytes."""
    head = (
        "metric|side|KV|tok/s|min–max|rounds|llmir ÷ it|share of limit|others' CPU|load s|peak MB"
    )
    lines = [head.split("|")]
    for row in rows:
        for cell in row.cells:
            own = cell is row.llmir
            lines.append(
                [
                    row.metric.name,
                    cell.name,
                    cell.kv_dtype,
                    _rate(cell.median),
                    _spread(cell),
                    str(len(cell.rates)),
                    "" if own else _ratio(ratio(row.llmir.median, cell)),
                    _percent(row.share_of_limit) if own else "",
                    _percent(cell.others_cpu_share),
                    "" if cell.load_s is None else f"{cell.load_s:.1f}",
                    "" if cell.peak_memory_bytes is None else f"{cell.peak_memory_bytes / 1e6:.0f}",
                ]
            )
    return markdown(lines, left={0, 1, 2})


def failures(rows: Sequence[PeerRow], unprepared: Mapping[str, str]) -> str:
    """What is missing in the tables, and why; "" if nothing is."""
    lines = [f"- {name}: not measured: {why}" for name, why in unprepared.items()]
    lines += [
        f"- {row.metric.name}, {cell.name}: {len(cell.rates)} rounds only: {cell.error}"
        for row in rows
        for cell in row.cells
        if cell.error
    ]
    return "\n".join(lines)


def used_versions(rows: Sequence[PeerRow]) -> dict[str, str]:
    """Versions of all that was measured."""
    return {name: v for row in rows for cell in row.cells for name, v in cell.versions.items()}


def markdown(lines: Sequence[Sequence[str]], left: set[int]) -> str:
    """Lines of cells, the header first, as an aligned table.  left: columns aligned to the left."""
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(lines[0]))]

    def text(line: Sequence[str]) -> str:
        cells = (
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        return "| " + " | ".join(cells) + " |"

    rule = [":" + "-" * (w - 1) if i in left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([text(lines[0]), text(rule), *map(text, lines[1:])])


def _rate(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _spread(cell: Cell) -> str:
    return f"{_rate(min(cell.rates))}–{_rate(max(cell.rates))}" if cell.rates else ""


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"
