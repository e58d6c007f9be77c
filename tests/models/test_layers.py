"""The parts that the architectures are built of."""

from __future__ import annotations

import pytest
import torch

from llmir.dialect_ext.torch_library import register_all
from llmir.errors import UnsupportedModelError
from llmir.models.layers import gate_of


@pytest.mark.parametrize(
    ("hidden_act", "expected"),
    [("silu", torch.nn.SiLU()), ("gelu_pytorch_tanh", torch.nn.GELU("tanh"))],
)
def test_a_gate_is_the_activation_of_the_config(hidden_act: str, expected: torch.nn.Module) -> None:
    register_all()
    gate, up = torch.randn(4, 7) * 3, torch.randn(4, 7)
    torch.testing.assert_close(gate_of(hidden_act)(gate, up), expected(gate) * up)


def test_an_unknown_activation_is_refused_by_name() -> None:
    with pytest.raises(
        UnsupportedModelError,
        match="hidden_act 'gelu' is not supported; known: silu, gelu_pytorch_tanh",
    ):
        gate_of("gelu")
