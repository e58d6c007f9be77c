"""Tensor types as llm ops see them, independent of MLIR and torch.

A dimension is an int, or None where it is dynamic.  While torch traces a
model, dims are torch.SymInt objects: shape rules only copy dims about, so that
one rule serves the verifier, the lowerings and torch's fake kernels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

Dim = Any  # int | None | torch.SymInt

DTYPES = ("f32", "f16", "bf16", "i8", "i32", "i64")
_TENSOR = re.compile(r"tensor<((?:(?:\?|\d+)x)*)([a-z]+\d+)>")


@dataclass(frozen=True, slots=True)
class TensorType:
    """Shape and element type of a tensor; prints as MLIR, `tensor<?x64xf32>`."""

    shape: tuple[Dim, ...]
    dtype: str

    @property
    def rank(self) -> int:
        return len(self.shape)

    def __str__(self) -> str:
        dims = "".join(f"{'?' if d is None else d}x" for d in self.shape)
        return f"tensor<{dims}{self.dtype}>"

    @classmethod
    def parse(cls, text: str) -> TensorType | None:
        """The type that prints as `text`; None if `text` is not a ranked builtin tensor."""
        match = _TENSOR.fullmatch(text)
        if match is None:
            return None
        dims = tuple(None if d == "?" else int(d) for d in match[1].split("x")[:-1])
        return cls(dims, match[2])


def is_static(dim: Dim) -> bool:
    """Whether `dim` is a plain int (neither dynamic nor a torch.SymInt)."""
    return type(dim) is int


def dims_conflict(a: Dim, b: Dim) -> bool:
    """Whether two dims can be seen, statically, to differ."""
    return is_static(a) and is_static(b) and a != b
