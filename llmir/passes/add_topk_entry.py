"""add-topk-entry: beside `step`, `step_topk`, which returns the largest logits and whose they are.

    step_topk(the arguments of step) → f32[L, k], i32[L, k], f32[L] = llm.topk(logits)

Where C kernels compute the logits: they find the largest as they go, and no row of logits is
written.  Elsewhere a row is moved sooner than the portable form of llm.topk has searched it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from iree.compiler import ir

from llmir.config import TOP_K
from llmir.dialect_ext.c_kernels import PROVIDER
from llmir.dialect_ext.registry import get_op
from llmir.passes.base import Pass
from llmir.passes.entries import add_entry, functions_of, logits_of
from llmir.passes.ir import create_llm_op, defining_op, text_attribute


@dataclass(frozen=True, slots=True)
class AddTopkEntry(Pass):
    """Needs select-providers before it, and fuse-matmul after it.  k: less if V is."""

    k: int = TOP_K
    name: ClassVar[str] = "add-topk-entry"

    def run(self, module: ir.Module) -> None:
        with module.context, ir.Location.unknown():
            logits = logits_of(functions_of(module))
            maker = None if logits is None else defining_op(logits)
            if maker is not None and text_attribute(maker, "llm.provider") == PROVIDER:
                add_entry(module, "step_topk", self._largest)

    def _largest(self, logits: ir.Value) -> Sequence[ir.Value]:
        k = min(self.k, ir.RankedTensorType(logits.type).get_dim_size(1))
        made = create_llm_op(get_op("topk"), [logits], {"k": k})
        made.attributes["llm.provider"] = ir.StringAttr.get("portable")
        return list(made.results)
