"""torch-to-iree: IREE's own conversion of torch IR to linalg on tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from iree.compiler import ir

from llmir.passes.base import Pass
from llmir.passes.ir import run_mlir_pipeline


@dataclass(frozen=True, slots=True)
class TorchToIree(Pass):
    """See the module; llm ops must have been raised before."""

    name: ClassVar[str] = "torch-to-iree"

    def run(self, module: ir.Module) -> None:
        run_mlir_pipeline(module, "builtin.module(torch-to-iree)")
