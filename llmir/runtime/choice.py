"""Which module of an artifact runs, and on which device.

Asked for a device, the best module for it.  Not asked, the best device of this machine that
the artifact has a module for:

    1  a GPU with memory of its own: CUDA, HIP, Metal, a discrete one of Vulkan
    2  the CPU, whose kernels use the same memory as a GPU inside it would
    3  any other Vulkan device: an integrated GPU, a software device

Equals stand as the artifact has them: who compiled has named their favourite first.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmir.artifact import Artifact, ModuleEntry
from llmir.cpu_levels import level_within, rank
from llmir.errors import ArtifactTargetError, DeviceError
from llmir.host import host_cpu, missing_here
from llmir.runtime.device_facts import DeviceFacts
from llmir.runtime.devices import available_devices, devices_of, driver_problem, facts_of
from llmir.targets import TARGETS, VULKAN_PROFILES, kind_of_device

_KINDS = {target.kind for target in TARGETS.values()}


def choose_module(artifact: Artifact, device: str | None) -> ModuleEntry:
    """The module that runs; see `choose`."""
    return choose(artifact, device)[0]


def choose(artifact: Artifact, device: str | None) -> tuple[ModuleEntry, str]:
    """The module that runs and the URI of its device.

    Of CPU modules, the one for the best CPU that this machine comes up to.  For one that
    uses AMX the kernel is asked, for the whole process.  Of several for a GPU, the one for
    the latest architecture that the device has.
    Raises ArtifactTargetError: says which targets there are, and what is missing here.
    DeviceError: the device asked for is not there.
    """
    entries: Sequence[ModuleEntry] = artifact.manifest.modules
    if device is not None:
        entries = _for_device(artifact, device)
    refused = []
    for entry in _best_first(entries):
        missing = missing_here(entry.cpu_arch, entry.cpu_features) if entry.cpu_arch else []
        if missing:
            refused.append(f"{entry.target} needs {', '.join(missing)}")
            continue
        uris = [device] if device is not None else _devices_of(entry.driver)
        if not uris:
            problem = driver_problem(entry.driver)
            because = f": {problem}" if problem else ""
            refused.append(f"{entry.target} needs a device of the driver {entry.driver}{because}")
        for uri in uris:
            if not (why := _unfit(entry, uri)):
                return entry, uri
            refused.append(f"{entry.target} does not run on {uri}: {why}")
    where = "this machine" if device is None else f"device {device!r}"
    raise ArtifactTargetError(
        f"no module of {artifact.path} runs on {where}: {'; '.join(refused)}. " + _advice(entries)
    )


def _advice(entries: Sequence[ModuleEntry]) -> str:
    if not any(entry.cpu_arch for entry in entries):
        return _advice_for_gpus(entries)
    oldest = "aarch64" if host_cpu().arch == "aarch64" else "x86-64-v3"
    return f"Compile the model here, or for an older CPU (target cpu:{oldest})"


def _advice_for_gpus(entries: Sequence[ModuleEntry]) -> str:
    """For an artifact without CPU modules: what it is compiled for, and what there is here."""
    drivers = {entry.driver for entry in entries}
    if drivers == {"vulkan"} and _devices_of("vulkan"):
        return "Compile the model with target vulkan, whose code runs on any Vulkan device"
    targets = ", ".join(entry.target for entry in entries)
    here = ", ".join(device.uri for device in available_devices())
    none = "" if any(map(_devices_of, drivers)) else ", and this machine has no such device"
    return (
        f"It is compiled for {targets}{none}: compile the model for what is here ({here}; "
        "`llmir targets` lists the targets)"
    )


def _for_device(artifact: Artifact, device: str) -> list[ModuleEntry]:
    """The modules of the device's kind.  Raises ArtifactTargetError if there is none."""
    kind = kind_of_device(device)
    if kind not in _KINDS:
        facts_of(device)  # which says that there is no such driver
    there = [m.target for m in artifact.manifest.modules]
    entries = [m for m in artifact.manifest.modules if m.target.partition(":")[0] == kind]
    if not entries:
        present = ", ".join(d.uri for d in available_devices())
        raise ArtifactTargetError(
            f"{artifact.path} has no module for device {device!r}; it has: {', '.join(there)}. "
            f"Compile the model with target {kind!r} as well, or choose another device "
            f"(this machine has {present})"
        )
    return entries


def _best_first(entries: Sequence[ModuleEntry]) -> list[ModuleEntry]:
    """By place of the driver, then as the artifact has it; of one, the higher level or arch."""
    drivers = list(dict.fromkeys(entry.driver for entry in entries))

    def place(entry: ModuleEntry) -> tuple[int, int, int, int, int]:
        level = level_within(entry.cpu_arch, entry.cpu_features)
        return (
            _place_of(entry.driver),
            drivers.index(entry.driver),
            -rank(level),
            -len(set(entry.cpu_features)),
            -_generation(entry.target),
        )

    return sorted(entries, key=place)


def _place_of(driver: str) -> int:
    if driver.startswith("local"):
        return 2
    if driver != "vulkan":
        return 1
    return 1 if any(facts_of(uri).has_own_memory for uri in _devices_of(driver)) else 3


def _devices_of(driver: str) -> list[str]:
    """The URIs of a driver's devices, those with memory of their own first."""
    uris = [device.uri for device in devices_of(driver)]
    if driver.startswith("local"):
        return uris
    return sorted(uris, key=lambda uri: not facts_of(uri).has_own_memory)


def _generation(target: str) -> int:
    """Orders the architectures of a kind: sm_120 after sm_80, a Vulkan profile after none."""
    kind, _, arch = target.partition(":")
    if kind == "vulkan":
        return list(VULKAN_PROFILES).index(arch) + 1 if arch in VULKAN_PROFILES else 0
    return int(arch.removeprefix("sm_")) if kind == "cuda" else 0


def _unfit(entry: ModuleEntry, uri: str) -> str:
    """Why a device cannot run a module; "" if it can, or if one cannot tell."""
    if entry.cpu_arch or (facts := _known(uri)) is None:
        return ""
    if other := unfit_for(entry.target, uri):
        return other
    missing = [name for name in entry.needs if facts.features.get(name) is False]
    return f"it lacks {', '.join(missing)}" if missing else ""


def unfit_for(target: str, uri: str) -> str:
    """Why a device of the target's driver has not its architecture; "" if it may have."""
    kind, _, arch = target.partition(":")
    if kind == "cpu" or (facts := _known(uri)) is None:
        return ""
    there = facts.arch
    if kind == "cuda" and there and _generation(f"cuda:{there}") < _generation(target):
        return f"it is {there}, older than {arch}"
    if kind == "rocm" and there and there != arch:
        return f"it is {there}, not {arch}"
    vendor = VULKAN_PROFILES.get(arch) if kind == "vulkan" else None
    if vendor is not None and facts.vendor is not None and facts.vendor != vendor:
        return f"its vendor is {facts.vendor:#06x}, not {vendor:#06x}"
    return ""


def _known(uri: str) -> DeviceFacts | None:
    """What the driver tells; None if it fails: opening the device will say so."""
    try:
        return facts_of(uri)
    except DeviceError:
        return None
