"""One workload on every device: limits, then every case, each in a process of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from llmir.artifact import Artifact, ModuleEntry
from llmir.bench.cases import Case
from llmir.bench.costs import StepCosts
from llmir.bench.devices.limits import DeviceLimits
from llmir.bench.devices.places import Place
from llmir.bench.devices.roofline import attainable
from llmir.bench.latency import kv_bytes_of, limits_in_process
from llmir.bench.limits import MachineLimits
from llmir.bench.measure import Measured, RunOptions
from llmir.bench.report import Limits, Row, make_row
from llmir.bench.worker import run_job
from llmir.errors import LlmirError, OptionError
from llmir.host import num_cores

StageHook = Callable[[str], AbstractContextManager[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitFiles:
    """Modules that measure a device: of compiler/limit_modules.py.

    files:        function → path
    failed:       function → why it does not compile
    matmul_size:  n of the matmuls
    """

    files: Mapping[str, str]
    failed: Mapping[str, str]
    matmul_size: int


CompileLimits = Callable[[ModuleEntry], LimitFiles]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRow:
    """A case on a device.

    row                   as `llmir bench latency` has it
    flops_per_byte        what the step cannot avoid: its place under the roof
    roof_share            FLOP/s reached, of what the limits allow there
    energy_j_per_token    of the whole device; None where it does not tell, energy_source why
    device_peak_bytes     as in measure.Measured
    """

    row: Row
    flops_per_byte: float
    roof_share: float | None
    energy_j_per_token: float | None
    energy_source: str
    device_peak_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceResult:
    """A device's limits and rows; no_limits: why there are none; error: what ended it early."""

    place: Place
    limits: MachineLimits | DeviceLimits | None = None
    no_limits: str = ""
    rows: list[DeviceRow] = field(default_factory=list)
    error: str = ""


def run_devices(
    artifact: Artifact,
    places: Sequence[Place],
    cases: Sequence[Case],
    options: RunOptions,
    *,
    repeats: int,
    compile_limits: CompileLimits | None,
    on_stage: StageHook = lambda name: nullcontext(),
) -> list[DeviceResult]:
    """Measure the cases on every place that has a module; one that fails does not end the others.

    Args:
        options: device is taken from the place; threads are for CPUs
        compile_limits: None where the compile tools are not installed
    Raises: OptionError, before anything is measured, for a case that cannot fit.
    """
    if repeats < 1:
        raise OptionError(f"repeats must be at least 1, got {repeats}")
    if not any(place.module for place in places):
        reasons = "; ".join(f"{p.uri}: {p.why_not}" for p in places)
        raise OptionError(f"no device of this machine runs {artifact.path}: {reasons}")
    for case in cases:
        case.check(artifact.manifest.limits)
        for place in places:
            if place.module:
                kv_bytes_of(case, StepCosts.of(artifact.manifest, place.module), options)
    return [
        _run_place(artifact, place, cases, options, repeats, compile_limits, on_stage)
        for place in places
    ]


def _run_place(
    artifact: Artifact,
    place: Place,
    cases: Sequence[Case],
    options: RunOptions,
    repeats: int,
    compile_limits: CompileLimits | None,
    on_stage: StageHook,
) -> DeviceResult:
    """A CPU's limits are measured before and after, and the better count, as in `run_latency`."""
    module = place.module
    if module is None:
        return DeviceResult(place=place)
    limits, no_limits = _limits_of(place, module, options, compile_limits, on_stage)
    found: list[tuple[Case, Measured]] = []
    error = ""
    try:
        for case in cases:
            measured = _measure(artifact, place, module, case, options, repeats, on_stage)
            found.append((case, measured))
        if isinstance(limits, MachineLimits):
            limits = limits.better(limits_in_process(limits.num_threads, on_stage))
    except LlmirError as failed:
        error = str(failed)
    costs, budget = StepCosts.of(artifact.manifest, module), artifact.manifest.limits
    rows = [
        device_row(make_row(case, m, costs, budget.max_num_batched_tokens, limits), m, limits)
        for case, m in found
    ]
    return DeviceResult(place=place, limits=limits, no_limits=no_limits, rows=rows, error=error)


def _limits_of(
    place: Place,
    module: ModuleEntry,
    options: RunOptions,
    compile_limits: CompileLimits | None,
    on_stage: StageHook,
) -> tuple[MachineLimits | DeviceLimits | None, str]:
    """The device's limits, or why they are not known."""
    if module.target.startswith("cpu"):
        return limits_in_process(options.num_threads or num_cores(), on_stage), ""
    if compile_limits is None:
        return None, "its limits are measured by modules that the compile tools make: not installed"
    with on_stage(f"limits of {place.uri}"):
        made = compile_limits(module)
        job = {
            "job": "device_limits",
            "device": place.uri,
            "files": dict(made.files),
            "matmul_size": made.matmul_size,
        }
        try:
            found = DeviceLimits(**run_job(job))
        except LlmirError as error:
            return None, f"its limits could not be measured: {error}"
    return dataclasses.replace(found, failed={**made.failed, **found.failed}), ""


def _measure(
    artifact: Artifact,
    place: Place,
    module: ModuleEntry,
    case: Case,
    options: RunOptions,
    repeats: int,
    on_stage: StageHook,
) -> Measured:
    costs = StepCosts.of(artifact.manifest, module)
    is_cpu = module.target.startswith("cpu")
    here = dataclasses.replace(
        options,
        device=place.uri,
        num_threads=options.num_threads if is_cpu else None,
        kv_cache_memory_bytes=kv_bytes_of(case, costs, options),
    )
    job = {
        "job": "device_case",
        "path": str(artifact.path),
        "case": dataclasses.asdict(case),
        "options": dataclasses.asdict(here),
        "repeats": repeats,
    }
    with on_stage(f"{place.uri}: {case.name}"):
        return Measured(**run_job(job))


def device_row(row: Row, measured: Measured, limits: Limits | None) -> DeviceRow:
    """A row with what only this command tells."""
    intensity = row.flops_per_token / row.bytes_per_token
    steps = sum(len(repeat) for repeat in measured.step_s)
    # A prefill's steps are its chunks; of decoding, each step is a token of every sequence.
    tokens = (
        steps * row.batch if row.phase == "decode" else len(measured.step_s) * row.prompt_tokens
    )
    energy = measured.energy_j
    return DeviceRow(
        row=row,
        flops_per_byte=intensity,
        roof_share=(
            row.flops_per_token * row.tokens_per_s / attainable(intensity, limits)
            if limits
            else None
        ),
        energy_j_per_token=None if energy is None else energy / tokens,
        energy_source=measured.energy_source,
        device_peak_bytes=measured.device_peak_bytes,
    )
