"""The conformance suite on targets: every op × provider × target × dtype that the registry has.

Where a device of the target is on this machine its functions run, and are compared with the ops'
numpy references; elsewhere they are compiled.  What a lowering refuses is noted with its reason.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmir.host import missing_here
from llmir.runtime.devices import devices_of
from llmir.targets import Target, resolve

from .draw import Verdict
from .draws import all_draws
from .program import Compiled, Function, Use, compile_functions, functions_of, uses_on

TARGETS = (
    "cpu", "vulkan", "cuda:sm_80", "rocm:gfx942", "rocm:gfx1100", "metal", "cpu:aarch64",
)  # fmt: skip
TIMEOUT_S = 900
"""For running all functions of a module."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A draw through a lowering on a target.

    status:  "ran", "compiled", "refused" or "failed"
    reason:  why it was refused, or how it failed
    """

    op: str
    provider: str
    dtype: str
    stored_as: str
    target: str
    case: str
    status: str
    reason: str = ""
    verdict: Verdict | None = None


def device_of(target: Target) -> str | None:
    """The URI of a device here that runs the target; None if there is none."""
    level = target.isa_level
    if level is not None:
        features = tuple(dict.fromkeys((*level.features, *target.cpu_features)))
        if missing_here(level.arch, features):
            return None
    found = devices_of(target.driver)
    return found[0].uri if found else None


def run_target(
    name: str,
    directory: Path,
    *,
    ops: Sequence[str] = (),
    every: bool = True,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> list[Outcome]:
    """The outcomes on one target.

    Args:
        directory: where modules are written
        ops: only these
        every: all draws; else one of each op, provider, and format of what is stored
    """
    target = resolve(name)
    uses = uses_on(target, ops)
    if not every:
        uses = _first_of_each(uses)
    outcomes = [_outcome(use, target, "refused", use.refused) for use in uses if use.refused]
    functions = functions_of(uses, target)
    say(f"{target.name}: {len(functions)} functions to compile")
    device = device_of(target)
    for compiled in compile_functions(functions, target, directory):
        if compiled.path is None:
            for use in compiled.functions[0].uses:
                outcomes.append(_outcome(use, target, "failed", compiled.error))
        elif device is None:
            for function in compiled.functions:
                outcomes += [_outcome(use, target, "compiled") for use in function.uses]
        else:
            say(f"{target.name}: {len(compiled.functions)} functions to run on {device}")
            outcomes += _run(compiled, target, device, seed)
    return outcomes


def _first_of_each(uses: Sequence[Use]) -> list[Use]:
    first: dict[tuple[str, str, str], Use] = {}
    for use in uses:
        draw = all_draws()[use.draw]
        key = draw.op, draw.stored_as, use.provider
        # One that runs says more than one that is refused.
        if key not in first or (first[key].refused and not use.refused):
            first[key] = use
    return list(first.values())


def _run(compiled: Compiled, target: Target, device: str, seed: int) -> list[Outcome]:
    """Run every function; one that ends the process fails, and the others go on in a new one."""
    outcomes: list[Outcome] = []
    left = [(f, use) for f in compiled.functions for use in f.uses]
    while left:
        lines, how = _worker(compiled.path, left, device, seed)
        verdicts = [Verdict(**line["verdict"]) for line in lines if "verdict" in line]
        for (_, use), verdict in zip(left, verdicts, strict=False):
            status = "ran" if verdict.passed else "failed"
            reason = verdict.problem or f"off by {verdict.share:.3g} times what is allowed"
            outcomes.append(
                _outcome(use, target, status, "" if verdict.passed else reason, verdict)
            )
        left = left[len(verdicts) :]
        if left:
            outcomes.append(_outcome(left[0][1], target, "failed", how))
            left = left[1:]
    return outcomes


def _worker(
    path: Path | None, left: Sequence[tuple[Function, Use]], device: str, seed: int
) -> tuple[list[dict[str, Any]], str]:
    """What the process said, and how it ended if it did not come to the end."""
    functions = [
        {
            "name": f.name,
            "uses": [[u.draw, u.lowering.provider != "portable", u.lowering.pages]],
        }
        for f, u in left
    ]
    job = {"device": device, "path": str(path), "seed": seed, "functions": functions}
    places = [str(Path(__file__).parents[2]), *sys.path]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "conformance.on_targets.worker"],
            input=json.dumps(job),
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in places if p)},
        )
        text, how = done.stdout, f"the process ended with status {done.returncode}: "
        how += " ".join(done.stderr.splitlines()[-1:])
    except subprocess.TimeoutExpired as error:
        text = error.stdout.decode() if isinstance(error.stdout, bytes) else (error.stdout or "")
        how = f"not done after {TIMEOUT_S} s"
    lines = [json.loads(line) for line in text.splitlines() if line.startswith('{"')]
    return lines, how


def _outcome(
    use: Use, target: Target, status: str, reason: str = "", verdict: Verdict | None = None
) -> Outcome:
    draw = all_draws()[use.draw]
    return Outcome(
        op=draw.op,
        provider=use.provider,
        dtype=draw.dtype,
        stored_as=draw.stored_as,
        target=target.name,
        case=draw.label,
        status=status,
        reason=reason,
        verdict=verdict,
    )
