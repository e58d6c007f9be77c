"""What a machine is: cores as the kernel describes them, and what code may use."""

from __future__ import annotations

import dataclasses
import itertools
import os
from pathlib import Path

import pytest

from llmir import host
from llmir.cpu_levels import LEVELS, host_level, level, level_within, rank
from llmir.host import HostCpu, missing_here, normal_feature, num_cores
from llmir.targets import TARGETS, resolve

AMX = ("amx-tile", "amx-int8", "amx-bf16")


def fake_cpus(root: Path, siblings: dict[int, str | None]) -> None:
    """/sys/devices/system/cpu with what each CPU's thread_siblings_list says, if it has one."""
    for cpu, text in siblings.items():
        directory = root / f"cpu{cpu}" / "topology"
        directory.mkdir(parents=True)
        if text is not None:
            (directory / "thread_siblings_list").write_text(text + "\n")


@pytest.mark.parametrize(
    ("siblings", "usable", "expected"),
    [
        # two threads a core, numbered one after the other, and as most servers do it
        ({0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"}, {0, 1, 2, 3}, 2),
        ({0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}, {0, 1, 2, 3}, 2),
        # a process that is held to some CPUs: both threads of a core, one thread of each
        ({0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}, {0, 2}, 1),
        ({0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}, {0, 1}, 2),
        ({0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}, {3}, 1),
        # no threads, and a kernel that does not say
        ({0: "0", 1: "1"}, {0, 1}, 2),
        ({0: None, 1: None}, {0, 1}, 2),
        ({}, {0, 1, 2}, 3),
        # cores of both kinds
        ({0: "0-1", 1: "0-1", 2: "2", 3: "3"}, {0, 1, 2, 3}, 3),
    ],
)
def test_cores_are_physical_and_those_that_may_be_used(
    siblings: dict[int, str | None],
    usable: set[int],
    expected: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_cpus(tmp_path, siblings)
    monkeypatch.setattr(host, "_CPUS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: usable)
    assert num_cores() == expected


def test_this_machine_has_cores() -> None:
    assert 1 <= num_cores() <= len(os.sched_getaffinity(0))


# -- ISA levels ------------------------------------------------------------------------


def cpu_with(*names: str, arch: str = "x86_64") -> HostCpu:
    features = (f for name in names for f in level(name).features)
    return HostCpu(arch=arch, model="", features=frozenset(map(normal_feature, features)))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]  # a function
    """become(cpu, amx_refusal) makes this machine another."""

    def become(cpu: HostCpu, amx_refusal: str = "") -> None:
        monkeypatch.setattr(host, "host_cpu", lambda: cpu)
        monkeypatch.setattr(host, "amx_refusal", lambda: amx_refusal)

    return become


@pytest.mark.parametrize("name", [x.name for x in LEVELS])
def test_a_machine_has_its_level(name: str, machine) -> None:  # type: ignore[no-untyped-def]
    machine(cpu_with(name, arch=level(name).arch))
    assert host_level() is level(name)
    assert resolve("cpu").isa_level is level(name)
    assert level_within(level(name).arch, level(name).features) is level(name)


def test_levels_of_an_architecture_go_up() -> None:
    for lower, higher in itertools.pairwise(LEVELS):
        if lower.arch == higher.arch:
            assert set(lower.features) < set(higher.features)
            assert rank(lower) < rank(higher)
    assert rank(None) < rank(LEVELS[0])


def test_a_machine_below_all_levels_has_none(machine) -> None:  # type: ignore[no-untyped-def]
    machine(HostCpu(arch="x86_64", model="", features=frozenset({"sse3", "popcnt"})))
    assert host_level() is None
    assert resolve("cpu").isa_level is None


def test_avx512_without_vnni_takes_the_kernels_of_v3(machine) -> None:  # type: ignore[no-untyped-def]
    features = set(level("x86-64-v4-vnni").features) - {"avx512vnni"}
    machine(HostCpu(arch="x86_64", model="", features=frozenset(map(normal_feature, features))))
    assert host_level() is level("x86-64-v3")
    assert resolve("cpu:x86-64-v4").isa_level is level("x86-64-v3")


def test_amx_counts_only_if_the_kernel_permits_it(machine) -> None:  # type: ignore[no-untyped-def]
    cpu = cpu_with("x86-64-v4-amx")
    machine(cpu, "the kernel refuses it: Invalid argument")
    assert host_level() is level("x86-64-v4-vnni-bf16")
    assert missing_here("x86_64", AMX) == ["AMX (the kernel refuses it: Invalid argument)"]
    assert missing_here("x86_64", ("avx512bf16",)) == []
    # A CPU without it names what is missing, whatever the kernel would say.
    without = dataclasses.replace(cpu, features=cpu.features - {"amxint8"})
    machine(without, "not asked")
    assert missing_here("x86_64", AMX) == ["amx-int8"]


def test_every_cpu_target_has_a_level_that_it_comes_up_to() -> None:
    for target in TARGETS.values():
        if not target.is_cpu:
            assert target.isa_level is None
            continue
        if target.arch == "host":
            continue
        found = target.isa_level
        assert found is not None
        generated = {f for f in found.features if not host.is_amx(f)}
        assert generated <= set(target.cpu_features), target.name
        assert f"--iree-llvmcpu-target-triple={found.arch}-unknown-linux-gnu" in target.flags
