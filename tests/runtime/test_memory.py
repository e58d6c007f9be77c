"""A device's memory: what its driver tells of it, how it is shared out, and when it runs out."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import llmir
from llmir.errors import DeviceMemoryError, OptionError
from llmir.runtime import memory
from llmir.runtime.device_facts import DeviceFacts, parse_facts
from llmir.runtime.devices import facts_of
from llmir.runtime.memory import plan, total_bytes

MIB = 1 << 20
# Lines of the texts that IREE 3.13's drivers print; a Radeon and a GeForce were not at hand.
RADEON = """\
name: Radeon
type: discrete-gpu
vendor_id: 0x1002
features: storageBuffer8BitAccess=yes shaderInt8=no
memory_heaps: 2
  [0] size=67028123648 flags=0x00000000
  [1] size=17163091968 flags=0x00000001
"""
CUDA = """\
- gpu-compute-capability: 9.0
- memory-total-const-memory-size: 64 MB
- memory-total-global-memory-size: 143771 MB
"""
HIP = "- gpu-arch-name: gfx942\n- memory-total-global-memory-size: 196592 MB\n"


def test_what_drivers_tell() -> None:
    radeon = parse_facts(RADEON)
    assert (radeon.kind, radeon.vendor, radeon.memory_bytes) == (
        *("discrete-gpu", 0x1002, 17163091968),
    )
    assert radeon.features == {"storageBuffer8BitAccess": True, "shaderInt8": False}
    assert parse_facts(CUDA) == DeviceFacts(arch="sm_90", memory_bytes=143771 * MIB)
    assert parse_facts(HIP) == DeviceFacts(arch="gfx942", memory_bytes=196592 * MIB)
    assert parse_facts("") == DeviceFacts()


def test_what_this_machines_vulkan_device_tells() -> None:
    facts = facts_of("vulkan://0")
    assert facts.kind in ("cpu", "discrete-gpu", "integrated-gpu", "virtual-gpu")
    assert facts.memory_bytes is not None
    assert facts.memory_bytes >= 1 << 28
    assert "storageBuffer8BitAccess" in facts.features


def pages(artifact: llmir.Artifact, device: str, **given: Any) -> int:
    module = artifact.manifest.module_for("vulkan" if device == "vulkan://0" else "cpu:host")
    both = {"kv_cache_bytes": None, "memory_fraction": None, **given}
    return plan(artifact, module, device, **both)[0]


def test_pages_of_a_fraction(
    llama_everywhere: llmir.Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What weights and a step leave of the fraction, in whole pages of all three layers."""
    manifest = llama_everywhere.manifest
    page = 3 * 2 * 2 * 16 * 16 * 4
    weights = manifest.files["weights.portable.irpa"].num_bytes
    # In float32, tokens × (4 hidden + 3 FFN + 2 (q, k, v)) and rows of logits × vocabulary.
    step = 4 * (512 * (4 * 64 + 3 * 96 + 2 * 8 * 16) + 256 * 263)
    total = 8 * MIB
    monkeypatch.setattr(memory, "total_bytes", lambda device: total)
    for fraction in (0.5, 0.75, 1):
        expected = (int(fraction * total) - weights - step) // page
        assert pages(llama_everywhere, "vulkan://0", memory_fraction=fraction) == expected
    assert pages(llama_everywhere, "vulkan://0") == (total - weights - step) // 2 // page
    assert pages(llama_everywhere, "vulkan://0", kv_cache_bytes=10 * page) == 10
    with pytest.raises(
        DeviceMemoryError,
        match=r"vulkan://0 is out of memory for KV pages within 0\.1 of its memory\. Wanted: weights"
        r" 0\.5 MiB, KV pages 0\.0 MiB, tensors of a step about 1\.8 MiB; the device has 8\.0 MiB\. Give a larger part \(--device-memory-fraction, 0\.\d+ at least\)",
    ) as error:
        pages(llama_everywhere, "vulkan://0", memory_fraction=0.1)
    least = float(str(error.value).partition("--device-memory-fraction, ")[2].split()[0])
    assert least == pytest.approx((weights + step + 2 * page) / total, rel=0.01)
    assert pages(llama_everywhere, "vulkan://0", memory_fraction=least) >= 2
    with pytest.raises(DeviceMemoryError):
        pages(llama_everywhere, "vulkan://0", memory_fraction=0.98 * least)
    total = MIB
    with pytest.raises(
        DeviceMemoryError, match=r"1\.0 MiB\. All of it would not be enough: compile"
    ):
        pages(llama_everywhere, "vulkan://0", memory_fraction=1)
    with pytest.raises(DeviceMemoryError, match="out of memory for the KV pages"):
        pages(llama_everywhere, "vulkan://0", kv_cache_bytes=MIB)
    total = MIB // 4
    with pytest.raises(DeviceMemoryError, match="out of memory for the weights. Wanted: weights"):
        pages(llama_everywhere, "vulkan://0", kv_cache_bytes=MIB)
    # Never more than every sequence can use, however much there is.
    total = 1 << 40
    assert pages(llama_everywhere, "vulkan://0", memory_fraction=0.9) == 64 * 256 // 16 + 1


def test_a_driver_that_does_not_tell(
    llama_everywhere: llmir.Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "facts_of", lambda uri: DeviceFacts())
    assert total_bytes("vulkan://0") is None
    with pytest.raises(
        OptionError,
        match=r"the driver vulkan does not tell how much memory vulkan://0 has; give "
        r"kv_cache_memory_bytes \(--kv-cache-memory\) in its place",
    ):
        pages(llama_everywhere, "vulkan://0", memory_fraction=0.5)
    assert pages(llama_everywhere, "vulkan://0") == 64 * 256 // 16 + 1  # 1 GiB has room for all


@pytest.mark.parametrize("fraction", [0, -1, 1.5, "0.5", True, float("nan")])
def test_what_is_no_fraction(fraction: object, llama_everywhere: llmir.Artifact) -> None:
    with pytest.raises(OptionError, match="device_memory_fraction must be more than 0 and at mos"):
        llmir.LLM(llama_everywhere, device_memory_fraction=fraction)  # type: ignore[arg-type]


def test_one_of_the_two(llama_everywhere: llmir.Artifact) -> None:
    with pytest.raises(OptionError, match="kv_cache_memory_bytes and device_memory_fraction both"):
        llmir.LLM(llama_everywhere, device_memory_fraction=0.5, kv_cache_memory_bytes=MIB)


@pytest.mark.parametrize("device", ["local-task", "vulkan://0"])
def test_a_fraction_takes_effect(device: str, llama_everywhere: llmir.Artifact) -> None:
    fraction = 4 * MIB / (total_bytes(device) or 0)
    llm = llmir.LLM(llama_everywhere, device=device, device_memory_fraction=fraction)
    assert 0.5 * MIB < llm.engine.core.runner.kv_bytes < 2 * MIB  # type: ignore[attr-defined]


@pytest.mark.targets
def test_out_of_memory_says_what_wanted_it(
    tiny_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver itself refuses: one layer's pages are more than it gives at a time."""
    long = {"max_position_embeddings": 65536, "num_hidden_layers": 1}
    made = llmir.compile(
        tiny_checkpoint("llama", **long), "vulkan", max_model_len=65536, max_num_seqs=512
    )
    monkeypatch.setattr(memory, "total_bytes", lambda device: None)
    with pytest.raises(DeviceMemoryError) as error:
        llmir.LLM(made, device="vulkan://0", kv_cache_memory_bytes=8 << 30)
    text = str(error.value)
    assert "vulkan://0 is out of memory for the KV pages (" in text
    assert re.search(r"Wanted: weights [\d.]+ MiB, KV pages 8192\.0 MiB, tensors of a step", text)
    assert "the device has an unknown amount" in text
    assert "--kv-cache-memory" in text
