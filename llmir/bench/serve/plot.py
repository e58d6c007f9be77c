"""A load as an SVG drawing: how latencies are distributed, and what happened over time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

import numpy as np

from llmir.bench.serve.client import RequestResult

WIDTH, HEIGHT = 460, 300  # of a panel's axes, in pixels
LEFT, TOP, BOTTOM, RIGHT = 60, 40, 60, 20
_BLUE, _GREY = "#1f77b4", "#999999"
_COLOURS = {"ttft": "#d62728", "tpot": "#2ca02c", "itl": _BLUE, "e2el": "#9467bd"}
_NUM_BINS = 60


def draw(results: Sequence[RequestResult], title: str) -> str:
    """The drawing: cumulative distributions on a logarithmic scale, and tokens over time."""
    done = [result for result in results if result.success]
    width = 2 * (LEFT + WIDTH + RIGHT)
    height = TOP + HEIGHT + BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{LEFT}" y="14" font-size="13">{escape(title)}</text>',
    ]
    if not done:
        parts.append(f'<text x="{LEFT}" y="{TOP}">nothing was answered</text>')
    else:
        parts += _distributions(done, LEFT)
        parts += _timeline(done, 2 * LEFT + WIDTH + RIGHT)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _distributions(done: Sequence[RequestResult], left: int) -> list[str]:
    values: dict[str, list[float | None]] = {
        "ttft": [r.ttft_s for r in done],
        "tpot": [r.tpot_s for r in done],
        "itl": [itl for r in done for itl in r.itls_s],
        "e2el": [r.latency_s for r in done],
    }
    # Events that came together are less than a hundredth of a millisecond apart.
    found = {
        name: np.sort([max(1e3 * v, 0.01) for v in seconds if v is not None])
        for name, seconds in values.items()
    }
    found = {name: ms for name, ms in found.items() if len(ms)}
    low = math.floor(math.log10(min(ms[0] for ms in found.values())))
    high = math.ceil(math.log10(max(ms[-1] for ms in found.values())))

    def x_of(ms: float) -> float:
        return left + WIDTH * (math.log10(ms) - low) / ((high - low) or 1)

    def y_of(share: float) -> float:
        return TOP + HEIGHT * (1 - share)

    parts = [f'<text x="{left}" y="{TOP - 8}">share of latencies below, over milliseconds</text>']
    for percent in (0, 25, 50, 75, 90, 100):
        parts += _horizontal(left, y_of(percent / 100), f"{percent} %")
    for power in range(low, high + 1):
        x = x_of(10.0**power)
        parts.append(f'<path d="M{x:.1f} {TOP}v{HEIGHT}" stroke="#ddd"/>')
        parts.append(_label(x, TOP + HEIGHT + 16, f"{10.0**power:g}"))
    for name, ms in found.items():
        # At most a point a pixel.
        at = np.unique(np.linspace(0, len(ms) - 1, min(len(ms), WIDTH)).astype(int))
        points = [(x_of(ms[k]), y_of((k + 1) / len(ms))) for k in at]
        parts.append(_line([(points[0][0], y_of(0.0)), *points], _COLOURS[name]))
    return [*parts, *_legend(left, 90, {name: _COLOURS[name] for name in found})]


def _timeline(done: Sequence[RequestResult], left: int) -> list[str]:
    first = min(r.start for r in done)
    last = max(r.start + r.latency_s for r in done)
    span = max(last - first, 1e-6)
    edges = np.linspace(0.0, span, _NUM_BINS + 1)
    tokens = np.histogram([t - first for r in done for t in r.token_times()], edges)[0]
    rates = tokens / (span / _NUM_BINS)
    middles = (edges[:-1] + edges[1:]) / 2
    running = [
        sum(r.start - first <= t < r.start - first + r.latency_s for r in done) for t in middles
    ]
    most_rate, most_running = max(float(rates.max()), 1e-9), max(max(running), 1)

    def x_of(seconds: float) -> float:
        return left + WIDTH * seconds / span

    def scaled(most: float) -> Callable[[float], float]:
        return lambda value: TOP + HEIGHT * (1 - value / most)

    y_rate, y_running = scaled(most_rate), scaled(most_running)
    legend = {
        "events with a token, per second": _BLUE,
        f"requests being answered (at most {most_running})": _GREY,
    }
    parts = [f'<text x="{left}" y="{TOP - 8}">over seconds</text>', *_legend(left, 210, legend)]
    for quarter in range(5):
        rate = most_rate * quarter / 4
        parts += _horizontal(left, y_rate(rate), f"{rate:.0f}")
        seconds = span * quarter / 4
        parts.append(_label(x_of(seconds), TOP + HEIGHT + 16, f"{seconds:.3g}"))
    grey = [(x_of(t), y_running(n)) for t, n in zip(middles, running, strict=True)]
    blue = [(x_of(t), y_rate(rate)) for t, rate in zip(middles, rates, strict=True)]
    return [*parts, _line(grey, _GREY), _line(blue, _BLUE)]


def _horizontal(left: int, y: float, text: str) -> list[str]:
    return [
        f'<path d="M{left} {y:.1f}h{WIDTH}" stroke="#ddd"/>',
        f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>',
    ]


def _legend(left: int, width: int, colours: Mapping[str, str]) -> list[str]:
    """Below a panel, one beside the other, `width` pixels each."""
    parts = []
    for i, (name, colour) in enumerate(colours.items()):
        x, y = left + width * i, TOP + HEIGHT + 40
        parts.append(f'<rect x="{x}" y="{y}" width="12" height="4" fill="{colour}"/>')
        parts.append(f'<text x="{x + 18}" y="{y + 6}">{escape(name)}</text>')
    return parts


def _label(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{text}</text>'


def _line(points: Sequence[tuple[float, float]], colour: str) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
