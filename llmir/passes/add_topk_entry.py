"""add-topk-entry: beside `step`, `step_topk`, which returns the largest logits and whose they are.

    step_topk(the arguments of step) → f32[L, k], i32[L, k], f32[L] = llm.topk(logits)

On CPUs only where C kernels compute the logits: they find the largest as they go, and no row of
logits is written.  A CPU's portable form of llm.topk takes longer than the host does with the row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from iree.compiler import ir

from llmir.config import TOP_K
from llmir.dialect_ext.c_kernels import PROVIDER
from llmir.dialect_ext.registry import choose, get_op
from llmir.passes.base import Pass
from llmir.passes.entries import add_entry, functions_of, logits_of
from llmir.passes.ir import call_of, create_llm_op, defining_op, text_attribute
from llmir.passes.select_providers import note
from llmir.targets import resolve


@dataclass(frozen=True, slots=True)
class AddTopkEntry(Pass):
    """Needs select-providers before it, and fuse-matmul after it, where C kernels are.

    k: less if V is.  target, priority: as of select-providers, for llm.topk.
    """

    k: int = TOP_K
    target: str = "cpu"
    priority: Mapping[str, Sequence[str]] = field(default_factory=dict)
    name: ClassVar[str] = "add-topk-entry"

    def run(self, module: ir.Module) -> None:
        with module.context, ir.Location.unknown():
            logits = logits_of(functions_of(module))
            if logits is None:
                return
            maker = defining_op(logits)
            provider = None if maker is None else text_attribute(maker, "llm.provider")
            if provider == PROVIDER or not resolve(self.target).is_cpu:
                add_entry(module, "step_topk", self._largest)

    def _largest(self, logits: ir.Value) -> Sequence[ir.Value]:
        k = min(self.k, ir.RankedTensorType(logits.type).get_dim_size(1))
        made = create_llm_op(get_op("topk"), [logits], {"k": k})
        note(made, choose(call_of(made), resolve(self.target), self.priority))
        return list(made.results)
