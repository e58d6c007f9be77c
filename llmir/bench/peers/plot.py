"""Tokens per second over batch size and over depth, as an SVG drawing; both axes' scales are named.

Each panel: one line per side through its medians, a bar from its slowest to its fastest
round.  Rates are on a logarithmic scale, as they differ tenfold between sides and batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from llmir.bench.peers.base import LLMIR
from llmir.bench.peers.metrics import PLOT_BATCH_DEPTH, UNIT
from llmir.bench.peers.rounds import Cell
from llmir.bench.peers.rows import PeerRow

WIDTH, HEIGHT = 460, 340  # of a panel's axes, in pixels
LEFT, TOP, BOTTOM, LEGEND = 60, 40, 50, 210
_COLOURS = (
    *("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b"),
    *("#17becf", "#e377c2", "#7f7f7f", "#bcbd22", "#393b79", "#637939"),
)


def draw(batches: Sequence[PeerRow], depths: Sequence[PeerRow]) -> str:
    """The drawing: a panel over batch sizes, one over depths, and a legend."""
    names = list(dict.fromkeys(cell.name for row in (*batches, *depths) for cell in row.cells))
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(names)}
    width = 2 * (LEFT + WIDTH) + LEGEND
    height = TOP + HEIGHT + BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        *_panel(
            batches,
            LEFT,
            f"decode at depth {PLOT_BATCH_DEPTH}, over sequences",
            lambda row: math.log2(row.metric.batch),
            lambda row: str(row.metric.batch),
            colours,
        ),
        *_panel(
            depths,
            2 * LEFT + WIDTH,
            "decode of 1 sequence, over depth",
            lambda row: row.metric.depth,
            lambda row: str(row.metric.depth),
            colours,
        ),
    ]
    for i, (name, colour) in enumerate(colours.items()):
        x, y = 2 * (LEFT + WIDTH) + 15, TOP + 16 * i
        parts.append(f'<rect x="{x}" y="{y}" width="12" height="4" fill="{colour}"/>')
        parts.append(f'<text x="{x + 18}" y="{y + 6}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(
    rows: Sequence[PeerRow],
    left: int,
    title: str,
    position: Callable[[PeerRow], float],
    label: Callable[[PeerRow], str],
    colours: dict[str, str],
) -> list[str]:
    rates = [rate for row in rows for cell in row.cells for rate in cell.rates]
    if not rates:
        return [f'<text x="{left}" y="{TOP}">{escape(title)}: nothing measured</text>']
    low, high = math.floor(math.log10(min(rates))), math.ceil(math.log10(max(rates)))
    first, last = position(rows[0]), position(rows[-1])

    def x_of(row: PeerRow) -> float:
        return left + 10 + (WIDTH - 40) * (position(row) - first) / ((last - first) or 1)

    def y_of(rate: float) -> float:
        return TOP + HEIGHT * (1 - (math.log10(rate) - low) / ((high - low) or 1))

    parts = [f'<text x="{left}" y="{TOP - 15}" font-size="13">{escape(title)}, {UNIT}</text>']
    for power in range(low, high + 1):
        for digit in (1, 2, 5):
            rate = digit * 10.0**power
            if power == high and digit > 1:
                break
            y = y_of(rate)
            parts.append(
                f'<path d="M{left} {y:.1f}h{WIDTH - 20}" stroke="#ddd"/>'
                f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{rate:g}</text>'
            )
    for row in rows:
        parts.append(
            f'<text x="{x_of(row):.1f}" y="{TOP + HEIGHT + 18}" text-anchor="middle">'
            f"{escape(label(row))}</text>"
        )
    for name, colour in colours.items():
        points = [
            (x_of(row), cell)
            for row in rows
            for cell in row.cells
            if cell.name == name and cell.rates
        ]
        parts += _line(points, y_of, colour, 3 if name == LLMIR else 1.5)
    return parts


def _line(
    points: Sequence[tuple[float, Cell]], y_of: Callable[[float], float], colour: str, width: float
) -> list[str]:
    at = [(x, y_of(cell.median or 1.0)) for x, cell in points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
    bars = [
        f'<path d="M{x:.1f} {y_of(min(cell.rates)):.1f}V{y_of(max(cell.rates)):.1f}" '
        f'stroke="{colour}"/>'
        for x, cell in points
    ]
    dots = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in at]
    line = f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>'
    return [line, *bars, *dots]
