"""From an artifact and a list of cases to rows: each case in a process of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from llmir.artifact import Artifact
from llmir.bench.cases import Case
from llmir.bench.costs import StepCosts
from llmir.bench.limits import MachineLimits
from llmir.bench.measure import Measured, RunOptions
from llmir.bench.report import Row, make_row
from llmir.bench.worker import run_job
from llmir.errors import OptionError
from llmir.host import num_cores
from llmir.runtime.choice import choose_module
from llmir.runtime.memory import DEFAULT_KV_BYTES

StageHook = Callable[[str], AbstractContextManager[Any]]


def run_latency(
    artifact: Artifact,
    cases: Sequence[Case],
    options: RunOptions,
    *,
    repeats: int,
    on_stage: StageHook = lambda name: nullcontext(),
) -> tuple[list[Row], MachineLimits | None]:
    """Measure every case, and before and after them the machine's limits.

    The limits are of CPUs: None where the artifact runs on another device.  The better of
    the two measurements counts: on a shared machine one may be disturbed throughout.
    Raises OptionError, before anything is measured, for a case that cannot fit; otherwise
    as measure.measure_case.
    """
    manifest = artifact.manifest
    module = choose_module(artifact, options.device)
    costs = StepCosts.of(manifest, module)
    if repeats < 1:
        raise OptionError(f"repeats must be at least 1, got {repeats}")
    if options.num_threads is not None and options.num_threads < 1:
        raise OptionError(f"threads must be at least 1, got {options.num_threads}")
    is_cpu = module.target.startswith("cpu")
    for case in cases:
        case.check(manifest.limits)
        kv_bytes_of(case, costs, options)

    threads = options.num_threads or num_cores()
    limits = limits_in_process(threads, on_stage) if is_cpu else None
    measured = [
        measure_in_process(artifact, case, costs, options, repeats, on_stage) for case in cases
    ]
    if limits is not None:
        limits = limits.better(limits_in_process(threads, on_stage))
    budget = manifest.limits.max_num_batched_tokens
    rows = [
        make_row(case, m, costs, budget, limits) for case, m in zip(cases, measured, strict=True)
    ]
    return rows, limits


def limits_in_process(num_threads: int, on_stage: StageHook) -> MachineLimits:
    """This machine's limits, measured in a process of their own."""
    with on_stage("this machine's limits"):
        return MachineLimits(**run_job({"job": "limits", "num_threads": num_threads}))


def measure_in_process(
    artifact: Artifact,
    case: Case,
    costs: StepCosts,
    options: RunOptions,
    repeats: int,
    on_stage: StageHook,
) -> Measured:
    """Measure a case in a process of its own.  Raises as measure.measure_case."""
    kv_bytes = kv_bytes_of(case, costs, options)
    job = {
        "job": "case",
        "path": str(artifact.path),
        "case": dataclasses.asdict(case),
        "options": dataclasses.asdict(dataclasses.replace(options, kv_cache_memory_bytes=kv_bytes)),
        "repeats": repeats,
    }
    with on_stage(case.name):
        return Measured(**run_job(job))


def kv_bytes_of(case: Case, costs: StepCosts, options: RunOptions) -> int | None:
    """Memory for the KV pools: what was asked for, else the runtime's default if that is enough.

    Raises OptionError if what was asked for is too little.
    """
    needed = costs.kv_bytes(case.batch, case.tokens_per_seq)
    given = options.kv_cache_memory_bytes
    if given is None:
        return None if needed <= DEFAULT_KV_BYTES // 2 else max(needed, DEFAULT_KV_BYTES)
    if needed > given:
        raise OptionError(
            f"{case.name} needs {needed} bytes of KV cache; kv-cache-memory is {given}"
        )
    return given
