"""What `llmir bench latency` says: rows with their statistics, the document, the table."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import numpy as np

import llmir
from llmir.artifact import Artifact
from llmir.bench.cases import Case
from llmir.bench.costs import StepCosts
from llmir.bench.limits import MachineLimits
from llmir.bench.measure import Measured
from llmir.host import host_cpu, num_cores

_PACKAGES = ("iree-base-runtime", "numpy", "tokenizers")


class Limits(Protocol):
    """What shares are of: MachineLimits, or another device's."""

    @property
    def read_bytes_per_s(self) -> float: ...

    @property
    def arithmetic(self) -> tuple[float, str]:
        """FLOP/s of the fastest arithmetic that matmuls can have there, and what it is of."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the report.  Rates are of steps alone; the engine's own work is not in them.

    phase, batch, prompt_tokens, depth   as in cases.Case
    tokens_per_s                         median of the repeats; _min and _max: their spread
    step_ms_*                            percentiles over `num_steps` steps
    first_token_ms                       prefill: median over the repeats, from token ids to
                                         the first token, greedily chosen; decode: None
    bytes_per_token, flops_per_token     the floors of costs.StepCosts
    bandwidth_share, arithmetic_share    those floors × tokens_per_s, of the machine's limits;
                                         None where the limits were not measured
    arithmetic_limit                     what arithmetic that limit is of: "f32", "bf16 products"
    others_cpu_share                     what else this machine was busy with meanwhile
    load_s … kv_used_bytes               as in measure.Measured
    weight_bytes                         of the module's weights file
    repeats_tokens_per_s, steps_ms       what the numbers above are made of
    """

    phase: str
    batch: int
    prompt_tokens: int
    depth: int
    tokens_per_s: float
    tokens_per_s_min: float
    tokens_per_s_max: float
    step_ms_min: float
    step_ms_p50: float
    step_ms_p90: float
    step_ms_p99: float
    num_steps: int
    first_token_ms: float | None
    first_token_ms_min: float | None
    first_token_ms_max: float | None
    bytes_per_token: float
    flops_per_token: float
    bandwidth_share: float | None
    arithmetic_share: float | None
    arithmetic_limit: str | None
    others_cpu_share: float | None
    load_s: float
    first_step_s: float
    peak_memory_bytes: int | None
    weight_bytes: int
    kv_pool_bytes: int
    kv_used_bytes: int
    repeats_tokens_per_s: list[float]
    steps_ms: list[float]


def make_row(
    case: Case,
    measured: Measured,
    costs: StepCosts,
    budget: int,
    limits: Limits | None,
) -> Row:
    """The statistics of a row.  budget: max_num_batched_tokens."""
    steps = case.spans(budget)
    tokens = sum(span.length for spans in steps for span in spans)
    num_bytes = sum(costs.step_bytes(spans) for spans in steps) / tokens
    # One row of logits per sequence, in the step that completes it.
    flops = sum(costs.step_flops(spans, 0) for spans in steps) / tokens
    flops += 2 * costs.head_elements * case.batch / tokens
    rates = [tokens * len(r) / len(steps) / sum(r) for r in measured.step_s]
    steps_ms = [1e3 * s for repeat in measured.step_s for s in repeat]
    first_ms = [1e3 * s for s in measured.first_token_s]
    rate = float(np.median(rates))
    p50, p90, p99 = (float(p) for p in np.percentile(steps_ms, (50, 90, 99)))
    return Row(
        **dataclasses.asdict(case),
        tokens_per_s=rate,
        tokens_per_s_min=min(rates),
        tokens_per_s_max=max(rates),
        step_ms_min=min(steps_ms),
        step_ms_p50=p50,
        step_ms_p90=p90,
        step_ms_p99=p99,
        num_steps=len(steps_ms),
        first_token_ms=float(np.median(first_ms)) if first_ms else None,
        first_token_ms_min=min(first_ms, default=None),
        first_token_ms_max=max(first_ms, default=None),
        bytes_per_token=num_bytes,
        flops_per_token=flops,
        bandwidth_share=num_bytes * rate / limits.read_bytes_per_s if limits else None,
        arithmetic_share=flops * rate / limits.arithmetic[0] if limits else None,
        arithmetic_limit=limits.arithmetic[1] if limits else None,
        others_cpu_share=measured.others_cpu_share,
        load_s=measured.load_s,
        first_step_s=measured.first_step_s,
        peak_memory_bytes=measured.peak_memory_bytes,
        weight_bytes=costs.stored_weight_bytes,
        kv_pool_bytes=measured.kv_pool_bytes,
        kv_used_bytes=measured.kv_used_bytes,
        repeats_tokens_per_s=rates,
        steps_ms=steps_ms,
    )


def hardware() -> dict[str, Any]:
    """This machine, as results name it."""
    return {
        "cpu": host_cpu().model,
        "arch": host_cpu().arch,
        "cores": num_cores(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "load_average_1min": os.getloadavg()[0],
    }


def versions() -> dict[str, str]:
    """Of llmir and of what serves."""
    found = {p: importlib.metadata.version(p) for p in _PACKAGES}
    return {"llmir": llmir.__version__, **found, "python": platform.python_version()}


def document(
    artifact: Artifact,
    rows: Sequence[dict[str, Any]],
    limits: MachineLimits | None,
    *,
    command: str,
    machine: Mapping[str, Any],
) -> dict[str, Any]:
    """The JSON document: what was measured, where, when, with what.  Units end the names.

    machine: `hardware()` as it was before the measurements.
    """
    manifest = artifact.manifest
    return {
        "hardware": dict(machine),
        "versions": versions(),
        "command": command,
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "artifact": {
            "model": manifest.model.name,
            "cache_key": manifest.cache_key,
            "targets": [m.target for m in manifest.modules],
            "options": dict(manifest.options),
            "compiled_with": dict(manifest.tools),
        },
        "limits": dataclasses.asdict(limits) if limits else None,
        "rows": list(rows),
    }


def number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


def _mega(value: int | None) -> str:
    return "" if value is None else f"{value / 1e6:.0f}"


_COLUMNS: dict[str, Callable[[Row], str]] = {
    "phase": lambda r: r.phase,
    "seqs": lambda r: str(r.batch),
    "prompt": lambda r: str(r.prompt_tokens or ""),
    "depth": lambda r: str(r.depth),
    "tok/s": lambda r: number(r.tokens_per_s),
    "min–max": lambda r: f"{number(r.tokens_per_s_min)}–{number(r.tokens_per_s_max)}",
    "step ms min": lambda r: number(r.step_ms_min),
    "p50": lambda r: number(r.step_ms_p50),
    "p90": lambda r: number(r.step_ms_p90),
    "p99": lambda r: number(r.step_ms_p99),
    "steps": lambda r: str(r.num_steps),
    "first token ms": lambda r: "" if r.first_token_ms is None else number(r.first_token_ms),
    "MB/token": lambda r: f"{r.bytes_per_token / 1e6:.2f}",
    "bandwidth": lambda r: share(r.bandwidth_share),
    "MFLOP/token": lambda r: f"{r.flops_per_token / 1e6:.0f}",
    "arithmetic": lambda r: share(r.arithmetic_share),
    "others' CPU": lambda r: share(r.others_cpu_share),
    "load s": lambda r: f"{r.load_s:.2f}",
    "first step s": lambda r: f"{r.first_step_s:.2f}",
    "peak MB": lambda r: _mega(r.peak_memory_bytes),
    "weights MB": lambda r: _mega(r.weight_bytes),
    "KV MB used": lambda r: _mega(r.kv_used_bytes),
    "of": lambda r: _mega(r.kv_pool_bytes),
}


def table(rows: Sequence[Row]) -> str:
    """The rows as an aligned table, which is Markdown too.  MB are 10⁶ bytes."""
    return aligned(list(_COLUMNS), [[cell(row) for cell in _COLUMNS.values()] for row in rows])


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells as an aligned table, which is Markdown too."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    lines.insert(1, [f"{'-' * (width - 1)}:" for width in widths])
    return "\n".join(
        "| " + " | ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def limits_line(limits: MachineLimits | None) -> str:
    """The machine's limits in a sentence."""
    if limits is None:
        return "The machine's limits are measured for CPUs only: no shares."
    read = (limits.read_bytes_per_s, limits.read_bytes_per_s_median, limits.read_bytes_per_s_max)
    f32 = (limits.f32_flops_per_s, limits.f32_flops_per_s_median, limits.f32_flops_per_s_max)
    return (
        f"This machine, {limits.num_threads} threads: "
        f"reads {_rounds(read, limits.num_read_rounds, 'GB/s')}, "
        f"computes f32 {_rounds(f32, limits.num_matmul_rounds, 'GFLOP/s')}."
    )


def _rounds(rates: tuple[float, float, float], num_rounds: int, unit: str) -> str:
    reached, median, best = (f"{rate / 1e9:.1f}" for rate in rates)
    return f"{reached} {unit} (median {median}, best {best} of {num_rounds} rounds)"


def heading(machine: Mapping[str, Any]) -> str:
    """The machine in a sentence."""
    memory = machine["memory_bytes"] / (1 << 30)
    return (
        f"{machine['cpu']} ({machine['arch']}), {machine['cores']} cores, {memory:.0f} GiB; "
        f"load average before: {machine['load_average_1min']:.1f}"
    )
