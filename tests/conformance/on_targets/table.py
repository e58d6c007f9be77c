"""The outcomes as one table: a line for each op, provider and dtype, a column for each target."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from llmir.bench.report import aligned
from llmir.targets import resolve

from .suite import Outcome, device_of

LEGEND = """\
A line is an op through one lowering of a provider, with weights or KV pages stored as `dtype` says,
in every precision of activations that there is for it. A cell says what became of it on a target:

- a number: it ran, and this is the largest difference from the op's numpy reference, of the largest
  number of the reference; 0 where every result was the same
- `compiled`: compiled, not run, as there is no such device here
- `refused`: the lowering does not take it; a number in brackets, here or beside another result, is
  the reason that is listed below, which some of its shapes were refused for
- `FAILED`: listed below
"""


def markdown(outcomes: Sequence[Outcome]) -> str:
    """The legend, the table, why something was refused, and what failed."""
    targets = list(dict.fromkeys(o.target for o in outcomes))
    groups: defaultdict[tuple[str, str, str], dict[str, list[Outcome]]] = defaultdict(dict)
    for o in outcomes:
        groups[o.op, o.provider, o.stored_as].setdefault(o.target, []).append(o)
    reasons: dict[str, int] = {}
    lines, nowhere = [], []
    for (op, provider, dtype), found in sorted(groups.items()):
        if all(o.status == "refused" for os in found.values() for o in os):
            nowhere.append(f"{op} {provider} {dtype}")
            continue
        cells = [_cell(found.get(target, []), reasons) for target in targets]
        lines.append([op, provider, dtype, *cells])
    parts = [LEGEND, aligned(["op", "provider", "dtype", *targets], lines)]
    if reasons:
        parts.append("\nRefused, and why:\n")
        parts += [f"- [{number}] {reason}" for reason, number in reasons.items()]
    if nowhere:
        parts.append(f"\nRefused on all of these targets: {', '.join(nowhere)}.")
    parts.append("\n" + summary(outcomes))
    return "\n".join(parts) + "\n"


def summary(outcomes: Sequence[Outcome]) -> str:
    """How many of each, on what, and the failures one by one."""
    lines = []
    for target in dict.fromkeys(o.target for o in outcomes):
        here = [o for o in outcomes if o.target == target]
        counts = {s: sum(o.status == s for o in here) for s in ("ran", "compiled", "failed")}
        device = device_of(resolve(target))
        where = f"on {device}" if device else "no device here"
        text = ", ".join(f"{n} {status}" for status, n in counts.items() if n or status == "failed")
        lines.append(f"- {target} ({where}): {text}, {len(here) - sum(counts.values())} refused")
    failed = [o for o in outcomes if o.status == "failed"]
    if failed:
        lines.append("\nFailed:\n")
        lines += [f"- {o.target}: {_name(o)}: {' '.join(o.reason.split())[:800]}" for o in failed]
    return "Cases (an op's shapes, through a lowering, on a target):\n\n" + "\n".join(lines)


def _name(o: Outcome) -> str:
    return f"{o.op} {o.provider} {o.dtype} {o.case}"


def _cell(outcomes: Sequence[Outcome], reasons: dict[str, int]) -> str:
    marks = []
    for o in outcomes:
        # A precision of activations that the op's other lowerings are for is no dtype refused.
        if o.status == "refused" and (o.dtype == o.stored_as or _is_refused(outcomes)):
            number = reasons.setdefault(o.reason, len(reasons) + 1)
            marks.append(f"[{number}]")
    text = " ".join([_status(outcomes), *dict.fromkeys(marks)])
    return text


def _status(outcomes: Sequence[Outcome]) -> str:
    if not outcomes:
        return ""
    statuses = {o.status for o in outcomes}
    if "failed" in statuses:
        return "FAILED"
    if "ran" in statuses:
        error = max(o.verdict.error for o in outcomes if o.verdict is not None)
        return f"{error:.1e}" if error else "0"
    return "compiled" if "compiled" in statuses else "refused"


def _is_refused(outcomes: Sequence[Outcome]) -> bool:
    return all(o.status == "refused" for o in outcomes)
