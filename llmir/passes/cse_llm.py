"""cse-llm: of equal pure llm ops in a block, keep the first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from iree.compiler import ir

from llmir.passes.base import Pass
from llmir.passes.ir import attributes_key, call_of, llm_ops


@dataclass(frozen=True, slots=True)
class CseLlm(Pass):
    """Equal: the same op, attributes and operands.

    Only within one block, where the earlier op always dominates the later.  An
    op that is merged makes its users equal in the same walk.
    """

    name: ClassVar[str] = "cse-llm"

    def run(self, module: ir.Module) -> None:
        seen: dict[Any, ir.Operation] = {}
        for operation in llm_ops(module):
            if not call_of(operation).op.pure:
                continue
            key = (
                operation.block,
                operation.name,
                attributes_key(operation),
                tuple(operation.operands),
            )
            first = seen.setdefault(key, operation)
            if first is operation:
                continue
            for old, new in zip(operation.results, first.results, strict=True):
                old.replace_all_uses_with(new)
            operation.erase()
