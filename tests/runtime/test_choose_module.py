"""Which module of an artifact runs: the best that the machine comes up to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

import llmir
from llmir import artifact as artifacts
from llmir import host
from llmir.artifact import Artifact, ModuleEntry
from llmir.cpu_levels import level, level_within
from llmir.errors import ArtifactTargetError
from llmir.host import HostCpu, normal_feature
from llmir.runtime.choice import choose_module

V3, VNNI, BF16, AMX, NEON, I8MM = (
    *("x86-64-v3", "x86-64-v4-vnni", "x86-64-v4-vnni-bf16", "x86-64-v4-amx"),
    *("aarch64-neon", "aarch64-dotprod-i8mm"),
)
Become = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Become:
    """become(level, amx_refusal="") makes this machine one that has just what a level needs."""

    def become(name: str, amx_refusal: str = "", less: frozenset[str] = frozenset()) -> None:
        features = frozenset(map(normal_feature, level(name).features)) - less
        cpu = HostCpu(arch=level(name).arch, model="", features=features)
        monkeypatch.setattr(host, "host_cpu", lambda: cpu)
        monkeypatch.setattr(host, "amx_refusal", lambda: amx_refusal)

    return become


@pytest.fixture
def holding(tiny_artifact: Path) -> Callable[..., Artifact]:
    """make(names…) → an artifact with a module for each ISA level, as its manifest says."""
    made = artifacts.load(tiny_artifact)

    def entry(name: str) -> ModuleEntry:
        if name == "vulkan":
            changes = {"driver": "vulkan", "cpu": "", "cpu_arch": "", "cpu_features": ()}
            return dataclasses.replace(made.manifest.modules[0], target="vulkan", **changes)
        return dataclasses.replace(
            made.manifest.modules[0],
            target=f"cpu:{name}",
            cpu_arch=level(name).arch,
            cpu_features=level(name).features,
        )

    def make(*names: str) -> Artifact:
        modules = tuple(entry(name) for name in names)
        return Artifact(made.path, dataclasses.replace(made.manifest, modules=modules))

    return make


@pytest.mark.parametrize(
    "names", [(V3, VNNI, BF16, AMX, NEON, I8MM), (I8MM, AMX, NEON, V3, BF16, VNNI)]
)
@pytest.mark.parametrize("has", [V3, VNNI, BF16, AMX, NEON, I8MM])
def test_the_best_that_the_machine_has(
    has: str, names: tuple[str, ...], machine: Become, holding: Callable[..., Artifact]
) -> None:
    machine(has)
    assert choose_module(holding(*names), None).target == f"cpu:{has}"
    assert choose_module(holding(*names), "local-task").target == f"cpu:{has}"


def test_a_better_machine_takes_what_there_is(
    machine: Become, holding: Callable[..., Artifact]
) -> None:
    machine(AMX)
    assert choose_module(holding(NEON, V3, VNNI), None).target == f"cpu:{VNNI}"


def test_of_one_level_the_module_with_more_features(
    machine: Become, holding: Callable[..., Artifact]
) -> None:
    made = holding(V3, V3)
    v4 = tuple(f for f in level(VNNI).features if f != "avx512vnni")
    better = dataclasses.replace(made.manifest.modules[1], target="cpu:x86-64-v4", cpu_features=v4)
    modules = (made.manifest.modules[0], better)
    both = Artifact(made.path, dataclasses.replace(made.manifest, modules=modules))
    machine(VNNI)
    assert choose_module(both, None).target == "cpu:x86-64-v4"
    machine(V3)
    assert choose_module(both, None).target == f"cpu:{V3}"


def test_where_the_kernel_refuses_amx(machine: Become, holding: Callable[..., Artifact]) -> None:
    machine(AMX, "the kernel refuses it: Operation not permitted")
    assert choose_module(holding(V3, BF16, AMX), None).target == f"cpu:{BF16}"
    with pytest.raises(
        ArtifactTargetError,
        match=r"cpu:x86-64-v4-amx needs AMX \(the kernel refuses it: Operation not permitted\)",
    ):
        choose_module(holding(AMX), None)


def test_the_kernel_is_asked_for_amx_only_if_a_module_uses_it(
    machine: Become, holding: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(BF16)
    monkeypatch.setattr(host, "amx_refusal", lambda: pytest.fail("asked"))
    assert choose_module(holding(V3, BF16, AMX), None).target == f"cpu:{BF16}"


def test_none_that_runs_names_what_each_lacks(
    machine: Become, holding: Callable[..., Artifact]
) -> None:
    machine(V3, less=frozenset({"fma"}))
    with pytest.raises(ArtifactTargetError) as error:
        choose_module(holding(V3, VNNI, I8MM), None)
    text = str(error.value)
    assert "cpu:x86-64-v3 needs fma." in text
    assert "cpu:x86-64-v4-vnni needs fma, avx512f, avx512bw" in text
    assert "cpu:aarch64-dotprod-i8mm needs the aarch64 architecture (this is x86_64)" in text
    assert "or for an older CPU (target cpu:x86-64-v3)" in text


def test_drivers_stay_in_the_artifacts_order(
    machine: Become, holding: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which device is better is for whoever compiled to say; which CPU module is, for us."""
    machine(BF16)
    monkeypatch.setattr("llmir.runtime.session.devices_of", lambda driver: ("one",))
    assert choose_module(holding("vulkan", V3, BF16), None).target == "vulkan"
    assert choose_module(holding(V3, "vulkan", BF16), None).target == f"cpu:{BF16}"


@pytest.mark.targets
def test_one_artifact_for_several_cpus(
    tiny_checkpoint: Callable[..., Path], machine: Become
) -> None:
    """As compiled: the features that the loader goes by are those of each target."""
    targets = ["cpu:aarch64-dotprod-i8mm", "cpu:x86-64-v3", "cpu:x86-64-v4", f"cpu:{BF16}"]
    made = llmir.compile(tiny_checkpoint("llama"), targets)
    modules = {m.target: m for m in made.manifest.modules}
    assert list(modules) == targets
    within = {t: level_within(m.cpu_arch, m.cpu_features) for t, m in modules.items()}
    assert [x.name for x in within.values() if x] == [I8MM, V3, V3, BF16]
    assert len({m.weights for m in modules.values()}) == 1
    for has, expected in ((V3, V3), (VNNI, "x86-64-v4"), (BF16, BF16), (AMX, BF16), (I8MM, I8MM)):
        machine(has)
        assert choose_module(made, None).target == f"cpu:{expected}"
