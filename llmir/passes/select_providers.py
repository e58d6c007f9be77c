"""select-providers: note on every llm op which lowering it gets for a target.

Lowerings that order the elements of a KV page in their own way are chosen for all ops on
pages, or for none.

The choice stands in the IR as `llm.provider` and `llm.variant`, and what was
refused before it, with the reasons, as `llm.refused`: lower-llm reads the
first two, `inspect` shows all three.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from iree.compiler import ir

from llmir.dialect_ext.registry import Choice, choose
from llmir.passes.base import Pass
from llmir.passes.ir import call_of, llm_ops
from llmir.targets import resolve


@dataclass(frozen=True, slots=True)
class SelectProviders(Pass):
    """target: a target's name; priority: op → provider names, as registry.choose takes it."""

    target: str = "cpu"
    priority: Mapping[str, Sequence[str]] = field(default_factory=dict)
    name: ClassVar[str] = "select-providers"

    def run(self, module: ir.Module) -> None:
        target = resolve(self.target)
        calls = [(operation, call_of(operation)) for operation in llm_ops(module)]
        choices = [choose(call, target, self.priority) for _, call in calls]
        orders = {c.lowering.pages for c in choices if c.lowering.pages != "rows"}
        on_pages = [any(o.name == "kv" for o in call.op.operands) for _, call in calls]
        if orders and any(
            there and choice.lowering.pages == "rows"
            for there, choice in zip(on_pages, choices, strict=True)
        ):
            choices = [choose(call, target, self.priority, pages="rows") for _, call in calls]
        with module.context:
            for (operation, _), choice in zip(calls, choices, strict=True):
                note(operation, choice)


def note(operation: ir.Operation, choice: Choice) -> None:
    """Note a choice on an op, whose context is the current one."""
    noted = {
        "llm.provider": choice.lowering.provider,
        "llm.variant": choice.lowering.variant,
        "llm.refused": "; ".join(choice.refused),
    }
    for name, text in noted.items():
        if text:
            operation.attributes[name] = ir.StringAttr.get(text)
