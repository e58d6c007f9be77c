"""llmir inspect and llmir targets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from cli.helpers import Llmir

from llmir import artifact as artifacts
from llmir.cpu_levels import host_level
from llmir.targets import ALIASES, TARGETS


def test_inspect_for_programs(llmir: Llmir, tiny_artifact: Path) -> None:
    document = json.loads(llmir.ok("inspect", tiny_artifact, "--json"))
    manifest = artifacts.load(tiny_artifact).manifest
    assert document["artifact"] == str(tiny_artifact)
    assert document["damage"] == []
    # 3 layers × K and V × 2 heads × 16 wide × 2 bytes
    assert document["kv_bytes_per_token"] == 3 * 2 * 2 * 16 * 2
    assert document["limits"]["max_model_len"] == 256
    assert document["weights"]["weights.packed.irpa"]["targets"] == ["cpu:host"]
    assert document["tools"]["torch"].startswith("2.")
    (module,) = document["modules"]
    assert module["cannot_run_here"] == []
    assert "--iree-hal-target-device=local" in module["flags"]
    ops = {use["op"]: use for use in module["providers"]}
    assert ops["paged_attention"]["count"] == 3
    assert ops["paged_attention"]["provider"] == "cpu_c"
    forms = document["weights"]["weights.packed.irpa"]["forms"]
    assert sum(form["count"] for form in forms) == len(manifest.tensors)
    stored = manifest.parameters["weights.packed.irpa"]
    assert sum(form["num_bytes"] for form in forms) == sum(p.num_bytes for p in stored)
    assert "tensors" not in document
    with_tensors = json.loads(llmir.ok("inspect", tiny_artifact, "--json", "--tensors"))
    assert len(with_tensors["tensors"]) == len(manifest.tensors)


def test_inspect_for_people(llmir: Llmir, demo_artifact: Path) -> None:
    text = llmir.ok("inspect", demo_artifact)
    for part in (
        "(llama), from SmolLM2-135M-Instruct.Q4_1.gguf",
        "30 layers, hidden 576, 9 heads of 64, 3 KV heads, vocabulary 49152",
        "22.5 KiB per token",
        "8192 tokens a sequence",
        "checksums  all files match",
        "weights.packed.irpa: format in the model → here",
        "q4_1 → q4_1",
        "target cpu:host",
        "runs here  yes",
        "30 ×   llm.paged_attention",
    ):
        assert part in text
    assert "token_embd" not in text
    assert len(llmir.ok("inspect", demo_artifact, "--tensors")) > len(text) + 10_000


def test_inspect_a_damaged_artifact(llmir: Llmir, tiny_artifact: Path, tmp_path: Path) -> None:
    """All is shown that can be, and the exit code says that something is wrong."""
    copy = shutil.copytree(tiny_artifact, tmp_path / "copy")
    (copy / "tokenizer.json").unlink()
    module = copy / "model.cpu-host.vmfb"
    module.write_bytes(module.read_bytes()[:-1] + b"\x7f")
    result = llmir("inspect", copy, "--json")
    assert result.code == 5
    missing, damaged = sorted(json.loads(result.out)["damage"])[::-1]
    assert "tokenizer.json is missing" in missing
    assert "model.cpu-host.vmfb is damaged" in damaged
    assert "tokenizer.json is missing" in result.err
    assert "checksums  2 files damaged" in llmir("inspect", copy).out


def test_targets_for_programs(llmir: Llmir) -> None:
    document = json.loads(llmir.ok("targets", "--json"))
    assert document["can_compile"]
    assert document["compile_problem"] == ""
    found = {target["name"]: target for target in document["targets"]}
    assert set(found) == set(TARGETS)
    assert found["cpu:host"]["devices"] == ["local-task"]
    assert {a for t in document["targets"] for a in t["aliases"]} == set(ALIASES)
    assert "portable" in document["providers"]
    assert "rms_norm" in document["providers"]["portable"]
    # A machine that runs the tests has a Vulkan device: `make test` installs Mesa's.
    assert "vulkan://0" in found["vulkan"]["devices"]
    for target in document["targets"]:
        assert bool(target["devices"]) != bool(target["why_not"])
        assert target["can_compile"]
        assert target["providers"][-1] == "portable"
        assert set(target["providers"]) <= set(document["providers"])
    sizes = {device["uri"]: device["memory_bytes"] for device in document["devices"]}
    assert sizes["vulkan://0"] >= 1 << 30
    assert "does not load" in document["drivers_that_fail"]["hip"]
    assert "its vendor is" in found["vulkan:adreno"]["why_not"]


def test_targets_for_people(llmir: Llmir) -> None:
    lines = llmir.ok("targets").splitlines()
    assert lines[0].split() == [
        *("target", "also", "called", "compiles", "providers", "kernels", "runs", "here")
    ]
    level = host_level()
    providers = "cpu_c,portable" if level else "portable"
    assert lines[1].split() == [
        *("cpu:host", "cpu", "yes", providers, level.name if level else "none", "local-task")
    ]


def test_targets_where_the_compile_tools_are_others(llmir: Llmir, monkeypatch: object) -> None:
    from llmir.compiler import versions

    versions.check_tools.cache_clear()
    try:
        monkeypatch.setitem(versions.PINNED, "torch", "1.0")  # type: ignore[attr-defined]
        document = json.loads(llmir.ok("targets", "--json"))
        text = llmir.ok("targets")
        code, message = llmir.error("opt", "--list")
    finally:
        versions.check_tools.cache_clear()
    assert not document["can_compile"]
    assert "torch 1.0 (found: " in document["compile_problem"]
    assert text.splitlines()[1].split()[2] == "no"
    assert (code, "pip install 'llmir[compile]'" in message) == (4, True)
