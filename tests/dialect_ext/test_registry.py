"""The registry: names, priorities, refusals, and a third-party package that adds to it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from llmir.dialect_ext import registry
from llmir.dialect_ext.base import Lowering, everywhere
from llmir.dialect_ext.gated_mul import SiluMul
from llmir.dialect_ext.registry import choose, get_op, parse_priority
from llmir.dialect_ext.rms_norm import RmsNorm
from llmir.dialect_ext.torch_library import register_all
from llmir.dialect_ext.types import TensorType
from llmir.errors import CompileError, OptionError, UnknownNameError, VerifyError
from llmir.targets import resolve

CPU = resolve("cpu")
X = TensorType((None, 8), "f32")
THIRD_PARTY = Path(__file__).parent.parent / "third_party"


def test_unknown_ops_list_the_known() -> None:
    with pytest.raises(
        UnknownNameError, match="unknown op 'norm'; known: add, append_kv, argmax, "
    ):
        get_op("norm")


def test_priorities_from_text_and_mappings() -> None:
    assert parse_priority(["rms_norm=portable", "linear = portable"]) == {
        "rms_norm": ["portable"],
        "linear": ["portable"],
    }
    assert parse_priority({"rms_norm": ("portable",)}) == {"rms_norm": ["portable"]}
    with pytest.raises(UnknownNameError, match="unknown op 'norm'"):
        parse_priority(["norm=portable"])
    with pytest.raises(
        UnknownNameError, match="unknown provider of llm.add 'cuda_ptx'; known: portable"
    ):
        parse_priority(["add=cuda_ptx"])
    with pytest.raises(OptionError, match="must look like op=provider,…; got 'rms_norm'"):
        parse_priority(["rms_norm"])


def test_a_call_gets_the_first_that_supports_it() -> None:
    call = get_op("linear").verify([X, TensorType((4, 8), "f32"), None], {})
    chosen = choose(call, resolve("metal"), {})
    assert chosen.lowering.variant == "scalar"
    assert chosen.refused == (
        "cpu_c: C kernels are for CPUs of a known ISA level",
        "portable/tiled: register tiles of vectors are for CPUs",
    )
    assert choose(call, resolve("vulkan"), {}).lowering.provider == "vulkan_spirv"
    assert choose(call, CPU, {}).lowering.variant == "tiled"


def test_providers_for_other_devices_are_passed_over_unless_asked_for() -> None:
    call = get_op("rms_norm").verify([X, TensorType((8,), "f32")], {"eps": 1e-5})
    assert choose(call, CPU, {}).refused == ()
    assert choose(call, resolve("cuda"), {}).lowering.provider == "cuda_ptx"
    assert choose(call, resolve("rocm:gfx1100"), {}).lowering.provider == "hip"
    asked = choose(call, CPU, {"rms_norm": ["cuda_ptx", "portable"]})
    assert asked.refused == ("cuda_ptx: PTX is for NVIDIA's GPUs",)


def test_a_call_that_nobody_takes_says_why() -> None:
    call = get_op("linear").verify([X, TensorType((4, 8), "f16"), None], {})
    with pytest.raises(
        CompileError,
        match=r"no provider lowers llm.linear\(tensor<\?x8xf32>, tensor<4x8xf16>\) for vulkan: "
        r"cpu_c: .*; vulkan_spirv: .*not f16; portable/tiled: .*; portable/scalar: .*f16",
    ):
        choose(call, resolve("vulkan"), {})
    with pytest.raises(CompileError, match="none was allowed by the op priority"):
        choose(call, CPU, {"linear": []})


def test_names_are_not_taken_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match="an op named 'rms_norm' is registered already"):
        registry.register_op(RmsNorm())
    again = Lowering(provider="portable", supports=everywhere, emit=lambda call, symbol: "")
    with pytest.raises(OptionError, match="llm.silu_mul has a lowering portable already"):
        registry.register_lowering("silu_mul", again)
    with pytest.raises(UnknownNameError, match="unknown op 'nothing'"):
        registry.register_lowering("nothing", again)


def test_torch_ops_run_the_reference_and_the_shape_rule() -> None:
    register_all()
    gate, up = torch.randn(3, 8), torch.randn(3, 8)
    expected = torch.nn.functional.silu(gate) * up
    torch.testing.assert_close(torch.ops.llm.silu_mul(gate, up), expected)
    meta = torch.ops.llm.rms_norm(gate.to("meta"), up[0].to("meta"), 1e-5)
    assert (meta.shape, meta.device.type) == ((3, 8), "meta")
    table = torch.randn(5, 8).to(torch.bfloat16)
    ids = torch.tensor([4, 0], dtype=torch.int32)
    got = torch.ops.llm.embedding(ids, table)
    torch.testing.assert_close(got, table[[4, 0]].float())
    with pytest.raises(VerifyError, match="llm.silu_mul: operand 'up' is tensor<3x7xf32>"):
        torch.ops.llm.silu_mul(gate, torch.randn(3, 7))


def test_the_reference_needs_no_torch() -> None:
    x = np.ones((1, 2), np.float32)
    np.testing.assert_allclose(SiluMul().reference(x, x), [[0.7310586, 0.7310586]], rtol=1e-6)


OUTSIDE = """
import llmir
from llmir.dialect_ext.registry import op_names, lowerings_of, provider_names
print("soft_cap" in op_names(), [x.provider for x in lowerings_of("silu_mul")])
a = llmir.compile(MODEL, ["cpu:x86-64-v3", "vulkan"], OUT)
cpu, vulkan = a.manifest.modules
print([(p.op, p.provider) for p in cpu.providers if p.op == "silu_mul"])
b = llmir.compile(MODEL, "cpu:x86-64-v3", OUT, op_priority={"silu_mul": ["portable"]})
print([(p.op, p.provider) for p in b.manifest.modules[0].providers if p.op == "silu_mul"])
print([(p.provider, p.refused) for p in vulkan.providers if p.op == "silu_mul"])
from llmir.passes.ir import parse_module
from llmir.passes.manager import PassManager
m = parse_module('''func.func @f(%x: tensor<?x4xf32>) -> tensor<?x4xf32> {
  %y = "llm.soft_cap"(%x) {cap = 30.0 : f64} : (tensor<?x4xf32>) -> tensor<?x4xf32>
  return %y : tensor<?x4xf32> }''')
PassManager().run(m, ["select-providers", "lower-llm"])
print("math.tanh" in str(m), "llm." in str(m))
import torch
from llmir.dialect_ext.torch_library import register_all
register_all()
print(torch.ops.llm.soft_cap(torch.tensor([[60.0]]), 30.0).item())
"""


def test_a_third_party_package_adds_an_op_and_a_provider(one_layer: Path, tmp_path: Path) -> None:
    """It is found by its entry points: installed, not imported by anybody."""
    head = f"MODEL, OUT = {str(one_layer)!r}, {str(tmp_path / 'out.llmir')!r}\n"
    done = subprocess.run(
        [sys.executable, "-c", head + OUTSIDE],
        env={**os.environ, "PYTHONPATH": str(THIRD_PARTY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *lines, capped = done.stdout.splitlines()
    assert lines == [
        "True ['example', 'cuda_ptx', 'hip', 'portable']",
        "[('silu_mul', 'example')]",
        "[]",  # our own is part of the matmul before it
        "[('portable', 'example: made for CPUs')]",
        "True False",
    ]
    assert float(capped) == pytest.approx(30.0 * np.tanh(2.0), rel=1e-6)
