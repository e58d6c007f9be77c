"""select-providers: note on every llm op which lowering it gets for a target.

The choice stands in the IR as `llm.provider` and `llm.variant`, and what was
refused before it, with the reasons, as `llm.refused`: lower-llm reads the
first two, `inspect` shows all three.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from iree.compiler import ir

from llmir.dialect_ext.registry import choose
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
        with module.context:
            for operation in llm_ops(module):
                choice = choose(call_of(operation), target, self.priority)
                noted = {
                    "llm.provider": choice.lowering.provider,
                    "llm.variant": choice.lowering.variant,
                    "llm.refused": "; ".join(choice.refused),
                }
                for name, text in noted.items():
                    if text:
                        operation.attributes[name] = ir.StringAttr.get(text)
