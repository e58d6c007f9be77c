"""What a pass is, and the passes there are.

A pass is a frozen dataclass whose fields are its options; it changes an MLIR
module in place.  One pass, one module, one test file of the same name in
tests/filecheck.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from importlib import import_module
from typing import Any, ClassVar

from iree.compiler import ir

from llmir.errors import OptionError, UnknownNameError

_PASSES = {
    "raise-torch-llm": "raise_torch_llm:RaiseTorchLlm",
    "torch-to-iree": "torch_to_iree:TorchToIree",
    "add-greedy-entry": "add_greedy_entry:AddGreedyEntry",
    "add-topk-entry": "add_topk_entry:AddTopkEntry",
    "cse-llm": "cse_llm:CseLlm",
    "dce-llm": "dce_llm:DceLlm",
    "pack-weights": "pack_weights:PackWeights",
    "select-providers": "select_providers:SelectProviders",
    "fuse-matmul": "fuse_matmul:FuseMatmul",
    "fuse-rope-append": "fuse_rope_append:FuseRopeAppend",
    "chain-kernels": "chain_kernels:ChainKernels",
    "lower-llm": "lower_llm:LowerLlm",
}


class Pass(ABC):
    """One transformation of an MLIR module."""

    name: ClassVar[str]

    @abstractmethod
    def run(self, module: ir.Module) -> None:
        """Change `module` in place.  Raises CompileError."""


def pass_names() -> tuple[str, ...]:
    """The names of all passes, sorted."""
    return tuple(sorted(_PASSES))


def get_pass(text: str) -> Pass:
    """The pass that `name` or `name{option=value,…}` describes.

    Raises UnknownNameError for an unknown pass, OptionError for an option that
    the pass does not have or that is not of its type.
    """
    name, _, rest = text.partition("{")
    if name not in _PASSES:
        raise UnknownNameError("pass", name, _PASSES)
    module, cls = _PASSES[name].split(":")
    pass_class = getattr(import_module(f"llmir.passes.{module}"), cls)
    pairs = [item.split("=", 1) for item in rest.rstrip("}").split(",") if "=" in item]
    given: dict[str, Any] = dict(pairs)
    known = {f.name: f for f in dataclasses.fields(pass_class)}
    for option, value in given.items():
        if option not in known:
            raise OptionError(f"pass {name} has no option {option!r}; it has: {', '.join(known)}")
        if known[option].type == "int":
            given[option] = _int(f"option {option} of pass {name}", str(value))
    made = pass_class(**given)
    assert isinstance(made, Pass)
    return made


def _int(what: str, text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise OptionError(f"{what} must be an integer, got {text!r}") from error
