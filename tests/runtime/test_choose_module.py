"""Which module of an artifact runs: the best that the machine comes up to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

import llmir
from llmir import artifact as artifacts
from llmir import host, targets
from llmir.artifact import Artifact, ModuleEntry
from llmir.cpu_levels import level, level_within
from llmir.errors import ArtifactTargetError
from llmir.host import HostCpu, normal_feature
from llmir.runtime import choice
from llmir.runtime.choice import choose, choose_module
from llmir.runtime.device_facts import DeviceFacts, parse_facts
from llmir.runtime.devices import DeviceInfo

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
        if not name.startswith(("x86-64", "aarch64")):
            needs = ("shaderInt8", "storageBuffer8BitAccess") if "rdna" in name else ()
            return dataclasses.replace(
                made.manifest.modules[0],
                target=name,
                driver=targets.resolve(name).driver,
                cpu="",
                cpu_arch="",
                cpu_features=(),
                needs=needs,
            )
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


def test_an_artifact_for_what_is_not_here_says_what_it_is_for(
    holding: Callable[..., Artifact],
) -> None:
    made = holding(V3)
    (entry,) = made.manifest.modules
    metal = dataclasses.replace(entry, target="metal", driver="metal", cpu_arch="", cpu_features=())
    alone = Artifact(made.path, dataclasses.replace(made.manifest, modules=(metal,)))
    with pytest.raises(ArtifactTargetError) as error:
        choose_module(alone, None)
    text = str(error.value)
    assert "It is compiled for metal, and this machine has no such device: compile the" in text
    assert "local-task" in text
    assert "CPU" not in text


# -- devices ---------------------------------------------------------------------------

GPU = "type: {}\nvendor_id: {}\nfeatures: shaderInt8={} storageBuffer8BitAccess={}\n"
CUDA = "- gpu-compute-capability: {}\n- memory-total-global-memory-size: 81920 MB\n"
Machine = Callable[[dict[str, str]], None]


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """devices({uri: what its driver dumps}) are those of this machine, beside the CPU."""

    def become(dumped: dict[str, str]) -> None:
        def of(driver: str) -> tuple[DeviceInfo, ...]:
            uris = [driver] if driver == "local-task" else sorted(dumped)
            return tuple(DeviceInfo(u, u) for u in uris if u.partition("://")[0] == driver)

        def facts(uri: str) -> DeviceFacts:
            return DeviceFacts(kind="cpu") if uri == "local-task" else parse_facts(dumped[uri])

        monkeypatch.setattr(choice, "devices_of", of)
        monkeypatch.setattr(choice, "facts_of", facts)

    return become


def test_a_gpu_with_memory_of_its_own_comes_before_the_cpu(
    machine: Become, holding: Callable[..., Artifact], devices: Machine
) -> None:
    machine(BF16)
    for kind, target, uri in [
        ("discrete-gpu", "vulkan", "vulkan://0"),
        ("integrated-gpu", f"cpu:{BF16}", "local-task"),
        ("cpu", f"cpu:{BF16}", "local-task"),
    ]:
        devices({"vulkan://0": GPU.format(kind, "0x1002", "yes", "yes")})
        for order in ((V3, "vulkan", BF16), ("vulkan", V3, BF16)):
            entry, found = choose(holding(*order), None)
            assert (entry.target, found) == (target, uri), kind
        assert choose(holding("vulkan"), None)[1] == "vulkan://0"
        assert choose(holding("vulkan", V3), "cpu")[0].target == f"cpu:{V3}"


def test_of_two_gpus_the_one_with_memory_of_its_own(
    machine: Become, holding: Callable[..., Artifact], devices: Machine
) -> None:
    machine(V3)
    gpus = ("integrated-gpu", "discrete-gpu")
    devices({f"vulkan://{i}": GPU.format(k, "0x8086", "yes", "yes") for i, k in enumerate(gpus)})
    assert choose(holding(V3, "vulkan"), None)[1] == "vulkan://1"
    assert choose(holding(V3, "vulkan"), "vulkan://0")[1] == "vulkan://0"


def test_of_equals_the_one_that_the_artifact_has_first(
    machine: Become, holding: Callable[..., Artifact], devices: Machine
) -> None:
    machine(V3)
    devices(
        {
            "vulkan://0": GPU.format("discrete-gpu", "0x10de", "yes", "yes"),
            "cuda://0": CUDA.format("9.0"),
        }
    )
    assert choose(holding("vulkan", "cuda:sm_80"), None)[1] == "vulkan://0"
    assert choose(holding("cuda:sm_80", "vulkan"), None)[1] == "cuda://0"


def test_the_latest_cuda_architecture_that_the_gpu_has(
    machine: Become, holding: Callable[..., Artifact], devices: Machine
) -> None:
    machine(V3)
    made = holding("cuda:sm_80", "cuda:sm_120", "cuda:sm_89")
    for capability, target in (("9.0", "sm_89"), ("8.6", "sm_80"), ("12.0", "sm_120")):
        devices({"cuda://0": CUDA.format(capability)})
        assert choose(made, "cuda://0")[0].target == f"cuda:{target}"
    devices({"cuda://0": CUDA.format("7.5")})
    with pytest.raises(ArtifactTargetError, match="cuda://0: it is sm_75, older than sm_80"):
        choose(made, "cuda://0")


def test_rocm_code_is_for_one_architecture(
    machine: Become, holding: Callable[..., Artifact], devices: Machine
) -> None:
    machine(V3)
    devices({"hip://0": "- gpu-arch-name: gfx1100\n"})
    assert choose(holding("rocm:gfx942", "rocm:gfx1100"), "hip://0")[0].target == "rocm:gfx1100"
    assert choose(holding("rocm:gfx942", V3), None)[0].target == f"cpu:{V3}"
    with pytest.raises(
        ArtifactTargetError, match="rocm:gfx942 .* hip://0: it is gfx1100, not gfx942"
    ):
        choose(holding("rocm:gfx942"), "hip://0")


def test_a_vulkan_profile_is_for_its_vendor_and_a_device_with_its_features(
    machine: Become, holding: Callable[..., Artifact], devices: Machine
) -> None:
    machine(V3)
    made = holding("vulkan", "vulkan:rdna3")
    devices({"vulkan://0": GPU.format("discrete-gpu", "0x1002", "yes", "yes")})
    assert choose(made, "vulkan://0")[0].target == "vulkan:rdna3"
    devices({"vulkan://0": GPU.format("discrete-gpu", "0x10de", "yes", "yes")})
    assert choose(made, "vulkan://0")[0].target == "vulkan"
    # Storage of 8 bits is missing: the module that keeps to 32 bits runs, the other is refused.
    devices({"vulkan://0": GPU.format("discrete-gpu", "0x1002", "no", "no")})
    assert choose(made, "vulkan://0")[0].target == "vulkan"
    with pytest.raises(
        ArtifactTargetError,
        match="vulkan:rdna3 does not run on vulkan://0: it lacks shaderInt8, storageBuffer8Bit"
        "Access. Compile the model with target vulkan",
    ):
        choose(holding("vulkan:rdna3"), "vulkan://0")


@pytest.mark.targets
def test_one_artifact_for_several_cpus(
    tiny_checkpoint: Callable[..., Path], machine: Become
) -> None:
    """As compiled: the features that the loader goes by are those of each target."""
    names = ["cpu:aarch64-dotprod-i8mm", "cpu:x86-64-v3", "cpu:x86-64-v4", f"cpu:{BF16}"]
    made = llmir.compile(tiny_checkpoint("llama"), names)
    modules = {m.target: m for m in made.manifest.modules}
    assert list(modules) == names
    within = {t: level_within(m.cpu_arch, m.cpu_features) for t, m in modules.items()}
    assert [x.name for x in within.values() if x] == [I8MM, V3, V3, BF16]
    assert len({m.weights for m in modules.values()}) == 1
    for has, expected in ((V3, V3), (VNNI, "x86-64-v4"), (BF16, BF16), (AMX, BF16), (I8MM, I8MM)):
        machine(has)
        assert choose_module(made, None).target == f"cpu:{expected}"
