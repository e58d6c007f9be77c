"""How long two artifacts take: their compile stages, their steps, and their ops one by one.

Steps are run from the artifacts' own modules, so they are what the compilers of each made of the
model.  Ops alone are compiled for the measurement, by the compiler that is installed, with the
lowerings and flags that each artifact names: where their compilers differ, these rows show the
lowerings' share and not the compilers'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmir.artifact import Artifact, ModuleEntry
from llmir.bench.cases import Case
from llmir.bench.costs import StepCosts
from llmir.bench.latency import measure_in_process
from llmir.bench.measure import RunOptions
from llmir.bench.op import CompileHook, run_ops
from llmir.runtime.choice import choose_module
from llmir.verify.compare import StageHook

REPEATS = 5
_DECODE_DEPTH, _PREFILL = 128, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """What something takes in two artifacts; None: it is not in that one."""

    what: str
    unit: str
    before: float | None
    after: float | None

    @property
    def ratio(self) -> float | None:
        """after ÷ before."""
        return self.after / self.before if self.before and self.after is not None else None


def compile_times(before: Artifact, after: Artifact) -> list[Times]:
    """Seconds of each stage as the manifests have them, and the sum; of targets that both have."""
    targets = [{m.target for m in a.manifest.modules} for a in (before, after)]
    of_one = [f" for {target}" for target in targets[0] ^ targets[1]]
    stages = [
        {
            name: seconds
            for name, seconds in a.manifest.compile_seconds.items()
            if not name.endswith(tuple(of_one))
        }
        for a in (before, after)
    ]
    total = "all stages" if not of_one else "all stages, of the targets that both have"
    for found in stages:
        found[total] = sum(found.values())
    return [
        Times(what=name, unit="s", before=stages[0].get(name), after=stages[1].get(name))
        for name in dict.fromkeys([*stages[0], *stages[1]])
    ]


def step_times(
    before: Artifact, after: Artifact, device: str, options: RunOptions, on_stage: StageHook
) -> list[Times]:
    """Milliseconds of a step that decodes one sequence, and of one that takes in a prompt.

    The median of all steps, each side in processes of its own, in turns.
    """
    limits = after.manifest.limits
    cases = [
        Case.decode(1, min(_DECODE_DEPTH, limits.max_model_len - 1)),
        Case.prefill(min(_PREFILL, limits.max_model_len, limits.max_num_batched_tokens)),
    ]
    rows = []
    for case in cases:
        steps: list[list[float]] = [[], []]
        for side in (0, 1, 1, 0):
            artifact = (before, after)[side]
            costs = StepCosts.of(artifact.manifest, choose_module(artifact, device))
            found = measure_in_process(artifact, case, costs, options, REPEATS, on_stage)
            steps[side] += [1e3 * s for repeat in found.step_s for s in repeat]
        medians = [float(np.median(s)) for s in steps]
        rows.append(Times(what=case.name, unit="ms", before=medians[0], after=medians[1]))
    return rows


def op_times(
    artifacts: Sequence[Artifact],
    options: RunOptions,
    scratch: Path,
    compile_ops: CompileHook,
    on_stage: StageHook,
) -> list[Times]:
    """Microseconds of each op of a step that decodes, alone; ops of the same label are one row.

    artifacts: before, after.  Raises as bench.op.run_ops.
    """
    found: list[dict[str, float]] = []
    for artifact in artifacts:
        depth = min(_DECODE_DEPTH, artifact.manifest.limits.max_model_len - 1)
        profiles, _ = run_ops(
            artifact, [Case.decode(1, depth)], options, scratch, compile_ops, on_stage=on_stage
        )
        times: dict[str, float] = {}
        for row in profiles[0].rows:
            times[row.label] = times.get(row.label, 0.0) + row.count * row.call_us
        found.append(times)
    return [
        Times(what=label, unit="µs", before=found[0].get(label), after=found[1].get(label))
        for label in dict.fromkeys([*found[0], *found[1]])
    ]


def compile_hook(module: ModuleEntry, output: Path) -> None:
    """A CompileHook: needs the compile tools."""
    from llmir.bench.op_measure import CHAIN
    from llmir.compiler.op_modules import compile_calls

    compile_calls(module.calls, CHAIN, module.flags, output)
