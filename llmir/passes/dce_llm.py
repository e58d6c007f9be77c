"""dce-llm: remove pure llm ops whose results nobody uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from iree.compiler import ir

from llmir.passes.base import Pass
from llmir.passes.ir import call_of, llm_ops


@dataclass(frozen=True, slots=True)
class DceLlm(Pass):
    """Backwards, so that what only a dead op used is dead too."""

    name: ClassVar[str] = "dce-llm"

    def run(self, module: ir.Module) -> None:
        for operation in reversed(llm_ops(module)):
            used = any(True for result in operation.results for _ in result.uses)
            if not used and call_of(operation).op.pure:
                operation.erase()
