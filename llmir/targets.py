"""What llmir compiles for: names, iree-compile flags, and the device that runs the result.

A target is written `kind[:arch]`: "cpu", "cpu:x86-64-v4", "vulkan", "cuda:sm_80",
"rocm:gfx942", "metal".  Names are validated here, because iree-compile crashes
on a CUDA architecture that it does not know.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmir.errors import OptionError, UnknownNameError

# What iree-compile 3.13 was seen to take (sm_90 fails there with "missing GPU target";
# PTX for sm_80 runs on newer GPUs through the driver's compiler).
CPU_ARCHES = {
    "host": ("", "host"),
    "x86-64-v3": ("x86_64-unknown-linux-gnu", "x86-64-v3"),
    "x86-64-v4": ("x86_64-unknown-linux-gnu", "x86-64-v4"),
    "znver4": ("x86_64-unknown-linux-gnu", "znver4"),
    "znver5": ("x86_64-unknown-linux-gnu", "znver5"),
    "aarch64": ("aarch64-unknown-linux-gnu", "generic"),
}
CUDA_ARCHES = ("sm_80", "sm_86", "sm_89", "sm_120")
ROCM_ARCHES = ("gfx908", "gfx90a", "gfx942", "gfx1100")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One compilation target.

    kind:        "cpu", "vulkan", "cuda", "rocm" or "metal"
    arch:        "host", "sm_80", "gfx942", …; "" where the kind has only one
    flags:       what iree-compile is called with for this target
    driver:      name of the IREE HAL driver that runs it
    """

    kind: str
    arch: str
    flags: tuple[str, ...]
    driver: str

    @property
    def name(self) -> str:
        """The canonical name; `resolve(name)` gives this target back."""
        return f"{self.kind}:{self.arch}" if self.arch else self.kind

    @property
    def slug(self) -> str:
        """The name as part of a file name."""
        return self.name.replace(":", "-")

    @property
    def is_cpu(self) -> bool:
        return self.kind == "cpu"


def _cpu(arch: str) -> Target:
    triple, cpu = CPU_ARCHES[arch]
    flags = [
        "--iree-hal-target-device=local",
        "--iree-hal-local-target-device-backends=llvm-cpu",
        f"--iree-llvmcpu-target-cpu={cpu}",
    ]
    if triple:
        flags.append(f"--iree-llvmcpu-target-triple={triple}")
    return Target(kind="cpu", arch=arch, flags=tuple(flags), driver="local-task")


def _cuda(arch: str) -> Target:
    flags = ("--iree-hal-target-device=cuda", f"--iree-cuda-target={arch}")
    return Target(kind="cuda", arch=arch, flags=flags, driver="cuda")


def _rocm(arch: str) -> Target:
    flags = ("--iree-hal-target-device=hip", f"--iree-rocm-target={arch}")
    return Target(kind="rocm", arch=arch, flags=flags, driver="hip")


def _single(kind: str) -> Target:
    return Target(kind=kind, arch="", flags=(f"--iree-hal-target-device={kind}",), driver=kind)


TARGETS: dict[str, Target] = {
    t.name: t
    for t in (
        *(_cpu(a) for a in CPU_ARCHES),
        *(_cuda(a) for a in CUDA_ARCHES),
        *(_rocm(a) for a in ROCM_ARCHES),
        _single("vulkan"),
        _single("metal"),
    )
}
ALIASES = {
    "cpu": "cpu:host",
    "cuda": "cuda:sm_80",
    "rocm": "rocm:gfx942",
    "hip": "rocm:gfx942",
    **{f"hip:{a}": f"rocm:{a}" for a in ROCM_ARCHES},
}


_KINDS = {"local-task": "cpu", "local-sync": "cpu", "hip": "rocm"}


def kind_of_device(uri: str) -> str:
    """The target kind that runs on a device: "cpu" for "local-task", "vulkan" for "vulkan://0"."""
    driver = uri.partition("://")[0]
    return _KINDS.get(driver, driver)


def resolve(name: str | Target) -> Target:
    """The target of that name or alias.  Raises UnknownNameError listing the names."""
    if isinstance(name, Target):
        return name
    if not isinstance(name, str):
        raise OptionError(f"a target is a name such as 'cpu', not {name!r}")
    target = TARGETS.get(ALIASES.get(name, name))
    if target is None:
        raise UnknownNameError("target", name, [*TARGETS, *ALIASES])
    return target
