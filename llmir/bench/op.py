"""`llmir bench op`: where the time of a step goes, op by op.

Every distinct llm op of the step, as it is after selection and fusion, is measured alone
(op_measure says how), and its time by how often it occurs in the step.  Beside their sum
stands the measured step; the difference is what is no op: the call, the arguments' way to the
device and the tokens' back, and what an op finds in the caches in a step and not alone, or
the other way round.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmir.artifact import Artifact, ModuleEntry, StepCall
from llmir.bench.cases import Case
from llmir.bench.costs import Span, StepCosts
from llmir.bench.latency import StageHook, kv_bytes_of, limits_in_process, measure_in_process
from llmir.bench.limits import MachineLimits
from llmir.bench.measure import Measured, RunOptions
from llmir.bench.op_costs import call_costs
from llmir.bench.op_measure import CHAIN, MeasuredOps, step_batch
from llmir.bench.report import aligned, number, share
from llmir.bench.worker import run_job
from llmir.errors import ArtifactVersionError, OptionError
from llmir.host import num_cores
from llmir.runtime.choice import choose_module

STEP_REPEATS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class OpRow:
    """One distinct op of a step.

    label               what it is in the model; op, provider, variant: as select-providers says
    count               how often it occurs in the step
    call_us             one call alone: median of the repeats; _p10 and _p90: percentiles
    step_ms             count calls
    step_share          that, of the whole measured step
    memory_bytes, activation_bytes, operations   of a call, as in op_costs
    bandwidth_share     memory_bytes in call_us, of the machine's read bandwidth; arithmetic_share:
                        operations, of its float32 arithmetic: kernels of integers may go
                        beyond it.  None where the limits were not measured
    repeats_us          what call_us is made of
    """

    label: str
    op: str
    provider: str
    variant: str
    count: int
    call_us: float
    call_us_p10: float
    call_us_p90: float
    step_ms: float
    step_share: float
    memory_bytes: int
    activation_bytes: int
    operations: int
    bandwidth_share: float | None
    arithmetic_share: float | None
    repeats_us: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The ops of one case, and the step that they make.

    ops_ms            sum of the rows
    step_ms           the whole step: median; _p10 and _p90: percentiles
    difference_ms     step_ms − ops_ms
    *_others_cpu_share  what else the machine was busy with while each was measured
    """

    phase: str
    batch: int
    prompt_tokens: int
    depth: int
    rows: list[OpRow]
    ops_ms: float
    step_ms: float
    step_ms_p10: float
    step_ms_p90: float
    difference_ms: float
    ops_others_cpu_share: float | None
    step_others_cpu_share: float | None


CompileHook = Callable[[ModuleEntry, Path], None]
"""Makes the file with the functions of a module's ops: compiler.op_modules, which serving lacks."""


def run_ops(
    artifact: Artifact,
    cases: Sequence[Case],
    options: RunOptions,
    scratch: Path,
    compile_ops: CompileHook,
    *,
    on_stage: StageHook,
) -> tuple[list[Profile], MachineLimits | None]:
    """Measure the ops and the step of every case, each in a process of its own.

    Raises, before anything is measured: OptionError for a case that cannot fit or is more than
    one step, or an op whose operands' sizes are not known; ArtifactVersionError if the artifact
    does not list its ops.  Otherwise as measure.measure_case.
    """
    manifest = artifact.manifest
    module = choose_module(artifact, options.device)
    costs = StepCosts.of(manifest, module)
    if options.num_threads is not None and options.num_threads < 1:
        raise OptionError(f"threads must be at least 1, got {options.num_threads}")
    check_calls(module)
    for case in cases:
        case.check(manifest.limits)
        kv_bytes_of(case, costs, options)
        step_batch(artifact, case)

    with on_stage("compiling each op alone"):
        compile_ops(module, scratch / "ops.vmfb")
    threads = options.num_threads or num_cores()
    is_cpu = module.target.startswith("cpu")
    limits = limits_in_process(threads, on_stage) if is_cpu else None
    measured = []
    for case in cases:
        job = {
            "job": "ops",
            "path": str(artifact.path),
            "module_file": str(scratch / "ops.vmfb"),
            "case": dataclasses.asdict(case),
            "options": dataclasses.asdict(options),
        }
        with on_stage(f"ops of {case.name}"):
            ops = MeasuredOps(**run_job(job))
        zeros = dataclasses.replace(options, zero_kv=True)
        step = measure_in_process(artifact, case, costs, zeros, STEP_REPEATS, on_stage)
        measured.append((case, ops, step))
    if limits is not None:
        limits = limits.better(limits_in_process(threads, on_stage))
    budget = manifest.limits.max_num_batched_tokens
    profiles = [
        make_profile(case, module.calls, ops, step, budget, limits) for case, ops, step in measured
    ]
    return profiles, limits


def check_calls(module: ModuleEntry) -> None:
    """Raises ArtifactVersionError or OptionError unless each op of a module can be measured."""
    if not module.calls:
        raise ArtifactVersionError(
            f"the artifact does not list the ops of {module.file}: another llmir made it; "
            "compile the model again"
        )
    for call in module.calls:
        for operand in call.operands:
            if operand.kind == "activations" and "?" in operand.dims:
                raise OptionError(
                    f"llm.{call.op} ({call.label}) cannot be measured alone: its operand "
                    f"{operand.name!r} is {'×'.join(operand.dims)}, and sizes must be known"
                )


def make_profile(
    case: Case,
    calls: Sequence[StepCall],
    ops: MeasuredOps,
    step: Measured,
    budget: int,
    limits: MachineLimits | None,
) -> Profile:
    """The statistics of a case.  budget: max_num_batched_tokens."""
    (spans,) = case.spans(budget)
    steps_ms = [1e3 * s for repeat in step.step_s for s in repeat]
    p10, step_ms, p90 = (float(p) for p in np.percentile(steps_ms, (10, 50, 90)))
    rows = [
        _row(call, call_s, links_s, case, spans, step_ms, limits)
        for call, call_s, links_s in zip(calls, ops.call_s, ops.links_s, strict=True)
    ]
    ops_ms = sum(row.step_ms for row in rows)
    return Profile(
        **dataclasses.asdict(case),
        rows=rows,
        ops_ms=ops_ms,
        step_ms=step_ms,
        step_ms_p10=p10,
        step_ms_p90=p90,
        difference_ms=step_ms - ops_ms,
        ops_others_cpu_share=ops.others_cpu_share,
        step_others_cpu_share=step.others_cpu_share,
    )


def _row(
    call: StepCall,
    call_s: Sequence[float],
    links_s: Sequence[float],
    case: Case,
    spans: Sequence[Span],
    step_ms: float,
    limits: MachineLimits | None,
) -> OpRow:
    links = float(np.median(links_s))
    # Of an op that takes next to nothing, noise may make it less.
    repeats_us = [max(0.0, 1e6 * (s - links) / CHAIN) for s in call_s]
    p10, call_us, p90 = (float(p) for p in np.percentile(repeats_us, (10, 50, 90)))
    # Every sequence of a case wants logits of its last token.
    sizes = {"T": sum(s.length for s in spans), "L": case.batch}
    costs = call_costs(call, sizes, spans)
    of_step_ms = call.count * call_us / 1e3

    def of_limit(work: int, per_s: float) -> float | None:
        return work / (call_us * 1e-6 * per_s) if call_us else None

    return OpRow(
        label=call.label,
        op=call.op,
        provider=call.provider,
        variant=call.variant,
        count=call.count,
        call_us=call_us,
        call_us_p10=p10,
        call_us_p90=p90,
        step_ms=of_step_ms,
        step_share=of_step_ms / step_ms,
        memory_bytes=costs.memory_bytes,
        activation_bytes=costs.activation_bytes,
        operations=costs.operations,
        bandwidth_share=of_limit(costs.memory_bytes, limits.read_bytes_per_s) if limits else None,
        arithmetic_share=of_limit(costs.operations, limits.f32_flops_per_s) if limits else None,
        repeats_us=repeats_us,
    )


_COLUMNS: dict[str, Callable[[OpRow], str]] = {
    "part": lambda r: r.label,
    "op": lambda r: r.op,
    "provider": lambda r: f"{r.provider}/{r.variant}".rstrip("/"),
    "×": lambda r: str(r.count),
    "call µs": lambda r: number(r.call_us),
    "p10–p90": lambda r: f"{number(r.call_us_p10)}–{number(r.call_us_p90)}",
    "step ms": lambda r: f"{r.step_ms:.3f}",
    "of step": lambda r: share(r.step_share),
    "MB": lambda r: f"{r.memory_bytes / 1e6:.3f}",
    "bandwidth": lambda r: share(r.bandwidth_share),
    "activation MB": lambda r: f"{r.activation_bytes / 1e6:.3f}",
    "MFLOP": lambda r: f"{r.operations / 1e6:.2f}" if r.operations else "",
    "arithmetic": lambda r: share(r.arithmetic_share) if r.operations else "",
}


def text(profile: Profile) -> str:
    """A profile as a heading and an aligned table, which is Markdown too; MB are 10⁶ bytes.

    Its last lines are the sum of the ops, the measured step, and the difference.
    """
    case = Case(
        phase=profile.phase,
        batch=profile.batch,
        prompt_tokens=profile.prompt_tokens,
        depth=profile.depth,
    )
    lines = [[cell(row) for cell in _COLUMNS.values()] for row in profile.rows]
    for name, ms, spread in (
        ("sum of ops", profile.ops_ms, ""),
        (
            "step, measured",
            profile.step_ms,
            f"{profile.step_ms_p10:.2f}–{profile.step_ms_p90:.2f} ms",
        ),
        ("difference", profile.difference_ms, ""),
    ):
        cells = dict.fromkeys(_COLUMNS, "")
        cells |= {"part": name, "step ms": f"{ms:.3f}", "of step": share(ms / profile.step_ms)}
        cells["p10–p90"] = spread
        lines.append(list(cells.values()))
    ops, step = map(share, (profile.ops_others_cpu_share, profile.step_others_cpu_share))
    busy = f" (others' CPU: ops {ops}, step {step})" if ops and step else ""
    return f"{case.name}{busy}\n\n{aligned(list(_COLUMNS), lines)}"


def as_json(profiles: Sequence[Profile]) -> list[dict[str, Any]]:
    """For the document."""
    return [dataclasses.asdict(profile) for profile in profiles]
