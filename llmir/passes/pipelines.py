"""The pipeline of a compilation, and pipelines written as text."""

from __future__ import annotations

from llmir.errors import OptionError

TO_LLM_IR = ("raise-torch-llm", "torch-to-iree", "cse-llm", "dce-llm", "add-greedy-entry")
"""From what iree-turbine imports to llm IR; the rest is per target."""

_FUSED = ("pack-weights", "fuse-matmul", "fuse-rope-append", "dce-llm")
FUSIONS: dict[str, tuple[str, ...]] = {
    "all": _FUSED,
    "ops": _FUSED,
    "none": ("pack-weights", "dce-llm"),
}
"""After select-providers and add-topk-entry, which need the target: which ops are fused, by the
option `fusion`.  There is no step_topk with "none".

Results differ by rounding at most.
"""

SHARED_DISPATCHES: dict[str, tuple[str, ...]] = {"all": ("chain-kernels",), "ops": (), "none": ()}
"""After that, and before lower-llm: which kernels share a dispatch.  Results are the same."""


def split_pipeline(text: str) -> tuple[str, ...]:
    """Split `a,b{x=1,y=2},c` at the commas outside braces.  Raises OptionError if unbalanced."""
    parts, depth = [""], 0
    for char in text:
        depth += (char == "{") - (char == "}")
        if depth < 0:
            break
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    if depth != 0:
        raise OptionError(f"braces do not match in the pipeline {text!r}")
    return tuple(p.strip() for p in parts if p.strip())
