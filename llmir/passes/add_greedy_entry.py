"""add-greedy-entry: beside `step`, which returns logits, `step_greedy`, which returns token ids.

    step_greedy(the arguments of step) → i32[L] = llm.argmax(logits)

What a greedy answer needs of a row of logits is one number: the rest is neither written nor moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from iree.compiler import ir

from llmir.dialect_ext.registry import get_op
from llmir.passes.base import Pass
from llmir.passes.entries import add_entry, functions_of, logits_of
from llmir.passes.ir import create_llm_op


@dataclass(frozen=True, slots=True)
class AddGreedyEntry(Pass):
    """A module without a function `step` is left alone."""

    name: ClassVar[str] = "add-greedy-entry"

    def run(self, module: ir.Module) -> None:
        with module.context, ir.Location.unknown():
            if logits_of(functions_of(module)) is not None:
                add_entry(module, "step_greedy", _likeliest)


def _likeliest(logits: ir.Value) -> Sequence[ir.Value]:
    return list(create_llm_op(get_op("argmax"), [logits], {}).results)
