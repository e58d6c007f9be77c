"""The roofline model (Williams, Waterman & Patterson, 2009) of a device, and its drawing.

    attainable FLOP/s = min(peak FLOP/s, intensity · bandwidth)
    intensity         = FLOP per byte of what a step cannot avoid (bench/costs.py)

Both axes of the drawing are logarithmic: a line for each device, a point for each row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from llmir.bench.report import Limits

WIDTH, HEIGHT = 620, 400
LEFT, TOP, BOTTOM, LEGEND = 70, 40, 50, 330
_COLOURS = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """intensity: FLOP per byte; flops_per_s: what was reached."""

    label: str
    intensity: float
    flops_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Roof:
    """A device, its limits if they are known, and its rows."""

    name: str
    limits: Limits | None
    points: Sequence[Point]


def attainable(intensity: float, limits: Limits) -> float:
    """FLOP/s that the device's limits allow at that intensity."""
    return min(limits.arithmetic[0], intensity * limits.read_bytes_per_s)


def ridge(limits: Limits) -> float:
    """The intensity at which both limits are reached, FLOP per byte."""
    return limits.arithmetic[0] / limits.read_bytes_per_s


def draw(roofs: Sequence[Roof]) -> str:
    """The drawing, as SVG."""
    xs = [p.intensity for r in roofs for p in r.points]
    xs += [ridge(r.limits) for r in roofs if r.limits]
    ys = [p.flops_per_s for r in roofs for p in r.points]
    ys += [r.limits.arithmetic[0] for r in roofs if r.limits]
    if not xs or not ys:
        xs, ys = [1.0], [1.0]
    x_axis, y_axis = _decades(xs), _decades(ys)
    width, height = LEFT + WIDTH + LEGEND, TOP + HEIGHT + BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{LEFT}" y="{TOP - 15}" font-size="13">GFLOP/s over FLOP per byte</text>',
        f'<clipPath id="axes"><rect x="{LEFT}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}"/>'
        "</clipPath>",
        *_grid(x_axis, y_axis),
    ]
    line = 0
    for number, roof in enumerate(roofs):
        colour = _COLOURS[number % len(_COLOURS)]
        if roof.limits:
            parts.append(_roof_line(roof.limits, x_axis, y_axis, colour))
        parts.append(_legend(line, f'<path d="M0 0h14" stroke="{colour}"/>', _named(roof)))
        line += 1
        for i, point in enumerate(roof.points):
            mark = f"{i + 1}"
            x, y = _x(point.intensity, x_axis), _y(point.flops_per_s, y_axis)
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'
                f'<text x="{x + 5:.1f}" y="{y - 4:.1f}" fill="{colour}">{mark}</text>'
            )
            parts.append(_legend(line, "", f"{mark}  {point.label}"))
            line += 1
    return "\n".join([*parts, "</svg>"]) + "\n"


def _named(roof: Roof) -> str:
    return roof.name if roof.limits is None else f"{roof.name}: roof of {roof.limits.arithmetic[1]}"


def _decades(values: Sequence[float]) -> tuple[int, int]:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def _x(intensity: float, axis: tuple[int, int]) -> float:
    return LEFT + WIDTH * (math.log10(intensity) - axis[0]) / (axis[1] - axis[0])


def _y(flops_per_s: float, axis: tuple[int, int]) -> float:
    return TOP + HEIGHT * (1 - (math.log10(flops_per_s) - axis[0]) / (axis[1] - axis[0]))


def _grid(x_axis: tuple[int, int], y_axis: tuple[int, int]) -> list[str]:
    parts = []
    for power in range(x_axis[0], x_axis[1] + 1):
        x = _x(10.0**power, x_axis)
        parts.append(
            f'<path d="M{x:.1f} {TOP}v{HEIGHT}" stroke="#ddd"/>'
            f'<text x="{x:.1f}" y="{TOP + HEIGHT + 18}" text-anchor="middle">{10.0**power:g}</text>'
        )
    for power in range(y_axis[0], y_axis[1] + 1):
        y = _y(10.0**power, y_axis)
        parts.append(
            f'<path d="M{LEFT} {y:.1f}h{WIDTH}" stroke="#ddd"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{10.0**power / 1e9:g}</text>'
        )
    return parts


def _roof_line(
    limits: Limits, x_axis: tuple[int, int], y_axis: tuple[int, int], colour: str
) -> str:
    """From the left edge up to the ridge, and level from there on."""
    corners = sorted({10.0 ** x_axis[0], ridge(limits), 10.0 ** x_axis[1]})
    path = " ".join(f"{_x(c, x_axis):.1f},{_y(attainable(c, limits), y_axis):.1f}" for c in corners)
    return (
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5" '
        'clip-path="url(#axes)"/>'
    )


def _legend(line: int, mark: str, text: str) -> str:
    x, y = LEFT + WIDTH + 15, TOP + 16 * line
    return f'<g transform="translate({x} {y})">{mark}<text x="18" y="4">{escape(text)}</text></g>'
