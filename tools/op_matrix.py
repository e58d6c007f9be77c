"""The matrix of ops and targets in plugins/README.md, made from the registry.

    python tools/op_matrix.py           # print it
    python tools/op_matrix.py --write   # put it into plugins/README.md

A cell names the providers that lower an op for a target, in the order in which they are tried,
and the formats of weights or pages that one takes or does not take there.  Asked are the calls of
tests/conformance/on_targets, a few shapes of every op in every format.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from conformance.on_targets.draw import Draw  # noqa: E402
from conformance.on_targets.draws import all_draws  # noqa: E402

from llmir.dialect_ext.base import Lowering  # noqa: E402
from llmir.dialect_ext.registry import get_op, lowerings_of, op_names  # noqa: E402
from llmir.targets import resolve  # noqa: E402

README = ROOT / "plugins" / "README.md"
BEGIN = "<!-- made by tools/op_matrix.py --write -->"
END = "<!-- end of what tools/op_matrix.py made -->"
COLUMNS = {
    "CPU x86-64": "cpu:x86-64-v3",
    "CPU aarch64": "cpu:aarch64-neon",
    "Vulkan": "vulkan",
    "CUDA": "cuda:sm_80",
    "ROCm": "rocm:gfx942",
    "Metal": "metal",
}


def matrix() -> str:
    """The table, in Markdown: llmir's own ops; those with equal cells share a line."""
    lines: dict[tuple[str, ...], list[str]] = {}
    for op in op_names():
        if type(get_op(op)).__module__.startswith("llmir."):
            cells = tuple(_cell(op, target) for target in COLUMNS.values())
            lines.setdefault(cells, []).append(f"`{op}`")
    head = ["op", *COLUMNS]
    rows = [[", ".join(ops), *cells] for cells, ops in lines.items()]
    rows.sort()
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def _cell(op: str, target: str) -> str:
    draws = [d for d in all_draws() if d.op == op]
    by_provider: dict[str, list[Lowering]] = {}
    for lowering in lowerings_of(op):
        by_provider.setdefault(lowering.provider, []).append(lowering)
    names = []
    for provider, lowerings in by_provider.items():
        taken = _formats_taken(draws, lowerings, target)
        every = dict.fromkeys(d.stored_as for d in draws)
        if not taken:
            continue
        through = sorted({x.rewritten_by for x in lowerings} - {""})
        name = f"`{provider}`" + (f" ({', '.join(through)})" if through else "")
        refused = [f for f in every if f not in taken]
        if refused and len(refused) <= len(taken):
            name += f", not {' '.join(refused)}"
        elif refused:
            name += f", of {' '.join(taken)}"
        names.append(name)
    return "; ".join(names)


def _formats_taken(
    draws: Sequence[Draw], lowerings: Sequence[Lowering], target: str
) -> dict[str, None]:
    """Formats of which a lowering takes a shape, whatever the precision of the activations."""
    found = resolve(target)
    return {
        draw.stored_as: None
        for draw in draws
        if any(x.supports(draw.call, found) is None for x in lowerings)
    }


def with_matrix(text: str) -> str:
    """The README with the table as it should be.  Raises ValueError without the two marks."""
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"{README} lacks the marks {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{matrix()}\n\n{END}{after}"


def main() -> None:
    if "--write" in sys.argv[1:]:
        README.write_text(with_matrix(README.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(matrix())


if __name__ == "__main__":
    main()
