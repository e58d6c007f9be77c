"""The parts that the architectures are built of.

Shape legend: T tokens, D hidden, F intermediate, N/K rows/columns of a matrix,
G groups of a row, B bytes a group, H heads, hd head dim, V vocabulary.

Parameters are meta tensors: a module describes the computation and the shapes
and dtypes of its parameters; the numbers go to the artifact's weights file and
never pass through torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llmir.errors import UnsupportedModelError
from llmir.formats.base import QuantLayout

_FLOATS = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
ops = torch.ops.llm


@dataclass(frozen=True, slots=True)
class MatrixForm:
    """How the artifact stores one matrix, a float dtype or a QuantLayout, and is to read it.

    format:       name of the format that the planes come from; "" if none
    activations:  how a product with it rounds its input, see dialect_ext.activations
    """

    dtype: str | None = None
    layout: QuantLayout | None = None
    format: str = ""
    activations: str = "f32"


def parameter(shape: tuple[int, ...], dtype: str = "f32") -> nn.Parameter:
    """A parameter without storage."""
    torch_dtype = torch.int8 if dtype == "i8" else _FLOATS[dtype]
    return nn.Parameter(torch.empty(shape, dtype=torch_dtype, device="meta"), requires_grad=False)


class Matrix(nn.Module):
    """A [N, K] parameter in the form that the artifact stores it in.

    Float: one parameter `weight`.  Quantised: `quants` i8[N, G, B], `scales`
    f32[N, G] and, if the layout has them, `mins` f32[N, G].
    """

    def __init__(self, num_rows: int, num_cols: int, form: MatrixForm, bias: bool = False) -> None:
        super().__init__()
        self.layout = form.layout
        self.form = form
        if form.layout is None:
            assert form.dtype is not None
            self.weight = parameter((num_rows, num_cols), form.dtype)
        else:
            groups = num_cols // form.layout.group_size
            self.quants = parameter((num_rows, groups, form.layout.group_bytes), "i8")
            self.scales = parameter((num_rows, groups))
            self.mins = parameter((num_rows, groups)) if form.layout.has_mins else None
        self.bias = parameter((num_rows,)) if bias else None

    def forward(self, x_TK: Tensor) -> Tensor:
        """x f32[T, K] → x Wᵀ + bias, f32[T, N]."""
        lay = self.layout
        if lay is None:
            return ops.linear(x_TK, self.weight, self.bias, self.form.activations)
        return ops.quantized_matmul(
            x_TK,
            self.quants,
            self.scales,
            self.mins,
            self.bias,
            lay.bits,
            lay.group_size,
            lay.zero_point,
            self.form.format,
            self.form.activations,
        )

    def rows(self, ids_T: Tensor) -> Tensor:
        """The rows `ids`, f32[T, K]."""
        lay = self.layout
        if lay is None:
            return ops.embedding(ids_T, self.weight)
        return ops.quantized_embedding(
            ids_T,
            self.quants,
            self.scales,
            self.mins,
            lay.bits,
            lay.group_size,
            lay.zero_point,
            self.form.format,
        )


class RmsNorm(nn.Module):
    """llm.rms_norm with its weight [D]."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = parameter((dim,))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight, self.eps)


def gate_of(hidden_act: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The op that a config's activation makes of gate and up, each f32[T, F].

    Raises UnsupportedModelError for an activation that has none.
    """
    known = {"silu": ops.silu_mul, "gelu_pytorch_tanh": ops.gelu_mul}
    if hidden_act not in known:
        raise UnsupportedModelError(
            f"hidden_act {hidden_act!r} is not supported; known: {', '.join(known)}"
        )
    return known[hidden_act]
