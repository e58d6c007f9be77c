"""What `llmir bench devices` says: a sentence for each device, a table, the document, the roofs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from llmir.bench.devices.limits import DeviceLimits
from llmir.bench.devices.roofline import Point, Roof
from llmir.bench.devices.run import DeviceResult, DeviceRow
from llmir.bench.report import aligned, limits_line, number, share

_COLUMNS: dict[str, Callable[[DeviceRow], str]] = {
    "phase": lambda r: r.row.phase,
    "seqs": lambda r: str(r.row.batch),
    "prompt": lambda r: str(r.row.prompt_tokens or ""),
    "depth": lambda r: str(r.row.depth),
    "tok/s": lambda r: _rate(r.row.tokens_per_s),
    "min–max": lambda r: f"{_rate(r.row.tokens_per_s_min)}–{_rate(r.row.tokens_per_s_max)}",
    "step ms p50": lambda r: number(r.row.step_ms_p50),
    "p99": lambda r: number(r.row.step_ms_p99),
    "first token ms": lambda r: (
        "" if r.row.first_token_ms is None else number(r.row.first_token_ms)
    ),
    "bandwidth": lambda r: share(r.row.bandwidth_share),
    "arithmetic": lambda r: share(r.row.arithmetic_share),
    "of the roof": lambda r: share(r.roof_share),
    "host peak MB": lambda r: _mega(r.row.peak_memory_bytes),
    "device peak MB": lambda r: _mega(r.device_peak_bytes),
    "J/token": lambda r: (
        "not told" if r.energy_j_per_token is None else f"{r.energy_j_per_token:.3g}"
    ),
    "others' CPU": lambda r: share(r.row.others_cpu_share),
}


def _rate(value: float) -> str:
    """Three digits of those below 10: some devices are a thousand times slower than others."""
    return number(value) if value >= 10 else f"{value:.3g}"


def _mega(value: int | None) -> str:
    return "not told" if value is None else f"{value / 1e6:.0f}"


def text(results: Sequence[DeviceResult]) -> str:
    """A sentence for each device, then the table of all."""
    lines = [f"- {_sentence(result)}" for result in results]
    rows = [
        [result.place.uri, *(cell(row) for cell in _COLUMNS.values())]
        for result in results
        for row in result.rows
    ]
    if rows:
        lines += ["", aligned(["device", *_COLUMNS], rows)]
    return "\n".join(lines)


def _sentence(result: DeviceResult) -> str:
    place = result.place
    name = f"{place.uri} ({place.name})" if place.name not in ("", place.uri) else place.uri
    if place.module is None:
        return f"{name}: not measured: {place.why_not}"
    parts = [f"{name}, module {place.module.target}:"]
    if isinstance(result.limits, DeviceLimits):
        parts.append(_device_limits(result.limits))
    elif result.limits is not None:
        parts.append(limits_line(result.limits))
    else:
        parts.append(f"no shares: {result.no_limits}.")
    sources = dict.fromkeys(row.energy_source for row in result.rows)
    if sources:
        parts.append(f"Energy: {', '.join(sources)}.")
    if result.error:
        parts.append(f"FAILED: {result.error}")
    return " ".join(parts)


def _device_limits(limits: DeviceLimits) -> str:
    matrix = limits.matrix_flops_per_s
    more = "" if matrix is None else f", bf16 products {matrix / 1e9:.1f} GFLOP/s"
    failed = "".join(f" {name} did not run: {why}." for name, why in limits.failed.items())
    return (
        f"reads {limits.read_bytes_per_s / 1e9:.1f} GB/s ({limits.read_from}), computes f32 "
        f"{limits.f32_flops_per_s / 1e9:.1f} GFLOP/s ({limits.f32_from}){more}. "
        f"Shares of arithmetic and the roof are of {limits.arithmetic[1]}.{failed}"
    )


def as_json(results: Sequence[DeviceResult]) -> list[dict[str, Any]]:
    """The `devices` of the document."""
    return [
        {
            "device": result.place.uri,
            "name": result.place.name,
            "target": result.place.module.target if result.place.module else None,
            "why_not_measured": result.place.why_not,
            "limits": dataclasses.asdict(result.limits) if result.limits else None,
            "no_limits": result.no_limits,
            "error": result.error,
            "rows": [_row(row) for row in result.rows],
        }
        for result in results
    ]


def _row(row: DeviceRow) -> dict[str, Any]:
    more = {k: v for k, v in dataclasses.asdict(row).items() if k != "row"}
    return {**dataclasses.asdict(row.row), **more}


def roofs(results: Sequence[DeviceResult]) -> list[Roof]:
    """What the plot shows."""
    return [
        Roof(
            name=result.place.uri,
            limits=result.limits,
            points=[
                Point(
                    label=_case(row),
                    intensity=row.flops_per_byte,
                    flops_per_s=row.row.flops_per_token * row.row.tokens_per_s,
                )
                for row in result.rows
            ],
        )
        for result in results
        if result.rows
    ]


def _case(row: DeviceRow) -> str:
    r = row.row
    case = (
        f"prefill {r.prompt_tokens}" if r.phase == "prefill" else f"decode {r.batch} at {r.depth}"
    )
    return f"{case}: {_rate(r.tokens_per_s)} tok/s"
