"""Other targets: Vulkan runs here (Mesa's software device), the rest compile to real binaries."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from parity.reference import EXACT

import llmir
from llmir import targets
from llmir.errors import (
    ArtifactTargetError,
    CompileError,
    DeviceError,
    OptionError,
    UnknownNameError,
)
from llmir.runtime.devices import available_devices, devices_of, driver_problem, open_device
from llmir.targets import resolve

KV_BYTES = 8 << 20
GREEDY = llmir.SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
PROMPTS = [list(range(5, 40)), [7, 100, 9], list(range(200, 221))]

# What a compiled executable of each kind starts with, or must contain.
MAGIC = {
    "cuda": b".target %s",
    "rocm": b"-amd-amdhsa-unknown-%s",
    "cpu": b"\x7fELF\x02\x01\x01%.0s",
    "metal": b"metal_stdlib%.0s",
    "vulkan": b"\x03\x02\x23\x07%.0s",
}


def both(artifact: llmir.Artifact) -> tuple[llmir.LLM, llmir.LLM]:
    return (
        llmir.LLM(artifact, device="cpu", kv_cache_memory_bytes=KV_BYTES),
        llmir.LLM(artifact, device="vulkan://0", kv_cache_memory_bytes=KV_BYTES),
    )


def test_a_vulkan_device_is_here() -> None:
    """`make test` installs Mesa's; without one every Vulkan test would say nothing."""
    assert any(d.uri.startswith("vulkan") for d in available_devices()), available_devices()


def test_a_tiny_llama_on_vulkan_gives_the_cpus_tokens(
    tiny_checkpoint: Callable[..., Path],
) -> None:
    artifact = llmir.compile(tiny_checkpoint("llama"), ["cpu", "vulkan"], kv_dtype="f32")
    assert [m.target for m in artifact.manifest.modules] == ["cpu:host", "vulkan"]
    assert [m.weights for m in artifact.manifest.modules] == [
        "weights.packed.irpa",
        "weights.portable.irpa",
    ]
    (on_vulkan,) = (m for m in artifact.manifest.modules if m.target == "vulkan")
    chosen = {u.op: u.provider for u in on_vulkan.providers}
    assert chosen["linear"] == chosen["paged_attention"] == "vulkan_spirv"
    cpu, vulkan = both(artifact)
    answers = [
        [o.outputs[0].token_ids for o in llm.generate(PROMPTS, GREEDY)] for llm in (cpu, vulkan)
    ]
    assert answers[0] == answers[1]
    np.testing.assert_allclose(vulkan.logits(PROMPTS[0]), cpu.logits(PROMPTS[0]), atol=1e-4, rtol=0)


@pytest.mark.targets
@pytest.mark.parametrize("kind", ["mistral-window", "qwen2", "qwen3", "llama-tied", "llama-mqa"])
def test_every_architecture_on_vulkan(kind: str, tiny_checkpoint: Callable[..., Path]) -> None:
    cpu, vulkan = both(llmir.compile(tiny_checkpoint(kind), ["cpu", "vulkan"], kv_dtype="f32"))
    expected, got = (
        [o.outputs[0].token_ids for o in llm.generate(PROMPTS, GREEDY)] for llm in (cpu, vulkan)
    )
    assert got == expected
    np.testing.assert_allclose(vulkan.logits(PROMPTS[0]), cpu.logits(PROMPTS[0]), atol=1e-4, rtol=0)


@pytest.mark.targets
@pytest.mark.parametrize("weights", ["q8_0", "q4_0", "int8", "int4-g32", "bf16"])
def test_every_weight_form_on_vulkan(weights: str, tiny_checkpoint: Callable[..., Path]) -> None:
    checkpoint = tiny_checkpoint("llama")
    cpu, vulkan = both(llmir.compile(checkpoint, ["cpu", "vulkan"], weights=weights, **EXACT))
    np.testing.assert_allclose(vulkan.logits(PROMPTS[0]), cpu.logits(PROMPTS[0]), atol=1e-4, rtol=0)


@pytest.mark.targets
@pytest.mark.parametrize("target", sorted(targets.TARGETS))
def test_a_tiny_llama_compiles_for(target: str, one_layer: Path) -> None:
    """Every target that llmir names, and the embedded binary is of its kind."""
    artifact = llmir.compile(one_layer, target)
    (module,) = artifact.manifest.modules
    assert module.target == target
    code = artifact.file(module.file).read_bytes()
    kind, _, arch = target.partition(":")
    magic = MAGIC[kind] % arch.encode()
    assert magic in code, f"no {target} binary in {module.file}"
    if kind == "cpu":
        machine = 0xB7 if arch.startswith("aarch64") else 0x3E  # ELF's e_machine
        elf = code.index(magic)
        assert int.from_bytes(code[elf + 18 : elf + 20], "little") == machine
        assert module.cpu_arch == {0xB7: "aarch64", 0x3E: "x86_64"}[machine]


@pytest.mark.targets
@pytest.mark.timeout(900)  # a software device computes 135 million weights a token
def test_the_demo_model_answers_on_vulkan_as_on_the_cpu(demo_gguf: Path) -> None:
    """Greedy tokens are equal until the CPU's two best logits lie within 1e-2."""
    artifact = llmir.compile(demo_gguf, ["cpu", "vulkan"], **EXACT)
    command = [sys.executable, "-m", "llmir", "inspect", artifact.path]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert re.search(r"211 × +llm\.quantized_matmul +vulkan_spirv", shown), shown
    assert re.search(r"30 × +llm\.paged_attention +vulkan_spirv", shown), shown
    cpu, vulkan = (
        llmir.LLM(artifact, device=d, kv_cache_memory_bytes=64 << 20) for d in ("cpu", "vulkan")
    )
    prompt = cpu.render_chat([{"role": "user", "content": "What is the capital of France?"}])
    params = llmir.SamplingParams(temperature=0, max_tokens=10)
    expected, got = (llm.generate(prompt, params)[0].outputs[0] for llm in (cpu, vulkan))
    assert "Paris" in got.text
    if expected.token_ids != got.token_ids:
        at = next(
            i
            for i, (a, b) in enumerate(zip(expected.token_ids, got.token_ids, strict=False))
            if a != b
        )
        logits = cpu.logits([*prompt["prompt_token_ids"], *expected.token_ids[:at]])[-1]
        best, second = np.sort(logits)[:-3:-1]
        assert best - second < 1e-2


def test_f16_weights_are_refused_where_a_driver_reads_them_wrongly(
    tiny_checkpoint: Callable[..., Path],
) -> None:
    with pytest.raises(CompileError, match="f16.*store the weights as bf16 or f32"):
        llmir.compile(tiny_checkpoint("llama", dtype=torch.float16), "vulkan")


# -- names -----------------------------------------------------------------------------


def test_unknown_targets_list_the_known(tmp_path: Path) -> None:
    with pytest.raises(
        UnknownNameError, match=r"unknown target 'gpu'; known: cpu, cpu:aarch64, .*vulkan"
    ):
        llmir.compile(tmp_path, "gpu")
    with pytest.raises(
        UnknownNameError, match="unknown target 'cuda:sm_90'; .* PTX for cuda:sm_80 runs on every"
    ):
        resolve("cuda:sm_90")
    for wrong, right in {
        "vulkn": "vulkan",
        "vulkan:rdna33": "vulkan:rdna3",
        "rocm:gfx94": "rocm:gfx942",
        "cuda:80": "cuda:sm_80",
        "cpu:x86-64-v33": "cpu:x86-64-v3",
    }.items():
        with pytest.raises(UnknownNameError, match=rf"Did you mean .*\b{right}\b"):
            resolve(wrong)


def test_hip_is_rocm() -> None:
    assert resolve("hip") is resolve("rocm") is resolve("rocm:gfx942")
    assert resolve("hip:gfx1100") is resolve("rocm:gfx1100")
    assert resolve("vulkan:vp_android_baseline_2022") is resolve("vulkan")


@pytest.mark.parametrize("name", sorted({**targets.TARGETS, **targets.ALIASES}))
def test_names_resolve(name: str) -> None:
    target = resolve(name)
    assert resolve(target.name) is target
    assert ":" not in target.slug
    assert target.flags


def test_a_driver_that_does_not_load() -> None:
    """This machine has no NVIDIA driver, as most that run the tests."""
    if not devices_of("cuda"):
        assert "libcuda.so" in driver_problem("cuda")
        with pytest.raises(
            DeviceError, match=r"cannot open device 'cuda://0': the driver cuda does not load \(UN"
        ):
            open_device("cuda://0")
    assert driver_problem("vulkan") == driver_problem("local-task") == ""
    assert driver_problem("metal") == "this IREE runtime has no driver metal"


@pytest.mark.parametrize("uri", ["cuda:0", "vulkan:0", "://0", ""])
def test_what_is_no_uri(uri: str, tiny_artifact: Path) -> None:
    with pytest.raises(OptionError, match=r"a device is written DRIVER or DRIVER://NUMBER, such"):
        open_device(uri)
    with pytest.raises(OptionError, match=r"such as (cuda|vulkan)://0, not"):
        llmir.LLM(tiny_artifact, device=uri)


def test_an_artifact_without_the_target(tiny_artifact: Path) -> None:
    with pytest.raises(
        ArtifactTargetError,
        match=r"has no module for device 'vulkan://0'; it has: cpu:host. Compile the model with "
        r"target 'vulkan' as well, or choose another device \(this machine has local-sync, local",
    ):
        llmir.LLM(tiny_artifact, device="vulkan://0")
    with pytest.raises(DeviceError, match="no driver tpu"):
        llmir.LLM(tiny_artifact, device="tpu://0")


def test_devices_that_are_not_there() -> None:
    with pytest.raises(
        DeviceError, match=r"cannot open device 'cuda://0': .*; devices on this mach"
    ):
        open_device("cuda")
    for uri in ("vulkan://7", "vulkan://GPU-0", "local-task://1"):
        with pytest.raises(DeviceError, match=rf"no device '{uri}'; devices on this machine: loc"):
            open_device(uri)
    assert open_device("vulkan") is open_device("vulkan://0")
    with pytest.raises(DeviceError, match="no driver 'tpu' for device 'tpu://0'"):
        open_device("tpu://0")
