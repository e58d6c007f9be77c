"""What llmir compiles for: names, iree-compile flags, and the device that runs the result.

A target is written `kind[:arch]`: "cpu", "cpu:x86-64-v4", "vulkan", "vulkan:rdna3",
"cuda:sm_80", "rocm:gfx942", "metal".  Names are validated here, because iree-compile
crashes on a CUDA architecture that it does not know.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmir.cpu_levels import LEVELS, IsaLevel, host_level, level
from llmir.errors import OptionError, UnknownNameError
from llmir.host import is_amx

# CPUs by LLVM's names, the ISA level whose kernels they run, and what they need beyond it.
# x86-64-v4 by itself promises no VNNI, so it has to take the kernels of x86-64-v3.
_V4 = ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
_ICE_LAKE = ("avx512vbmi2", "gfni", "vaes", "vpclmulqdq")
NAMED_CPUS = {
    "x86-64-v4": ("x86-64-v3", _V4),
    "icelake-server": ("x86-64-v4-vnni", _ICE_LAKE),
    "sapphirerapids": ("x86-64-v4-amx", (*_ICE_LAKE, "avx512fp16", "avxvnni")),
    "graniterapids": ("x86-64-v4-amx", (*_ICE_LAKE, "avx512fp16", "avxvnni")),
    "znver4": ("x86-64-v4-vnni-bf16", _ICE_LAKE),
    "znver5": ("x86-64-v4-vnni-bf16", (*_ICE_LAKE, "avxvnni")),
}
# What iree-compile 3.13 was seen to compile a whole model for.  sm_90 and sm_100 fail there with
# "missing GPU target"; gfx1030 and gfx1102 are unknown to it.
CUDA_ARCHES = ("sm_75", "sm_80", "sm_86", "sm_87", "sm_89", "sm_120")
ROCM_ARCHES = (
    *("gfx908", "gfx90a", "gfx942", "gfx950"),
    *("gfx1100", "gfx1101", "gfx1103", "gfx1150", "gfx1151", "gfx1200", "gfx1201"),
)
# Likewise, each with its vendor's number: their code counts on the size of that vendor's
# subgroups.  "vulkan" alone is IREE's least profile, vp_android_baseline_2022: no subgroups, and
# storage of 32 bits, in which it keeps narrower types.
VULKAN_PROFILES = {
    **dict.fromkeys(("rdna1", "rdna2", "rdna3", "rdna4"), 0x1002),
    **dict.fromkeys(("pascal", "volta", "turing", "ampere", "ada"), 0x10DE),
    **dict.fromkeys(("valhall1", "valhall2", "valhall3", "valhall4"), 0x13B5),
    "adreno": 0x5143,
}
"""AMD, NVIDIA, Arm, Qualcomm."""

KERNEL_PROVIDERS = {"cpu": "cpu_c", "vulkan": "vulkan_spirv", "cuda": "cuda_ptx", "rocm": "hip"}
"""Who provides llmir's own kernels for a kind of target; portable code serves all."""

_PTX = "PTX for cuda:sm_80 runs on every newer NVIDIA GPU: its driver compiles it"
_HINTS = {"cuda:sm_90": _PTX, "cuda:sm_90a": _PTX, "cuda:sm_100": _PTX}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One compilation target.

    kind:          "cpu", "vulkan", "cuda", "rocm" or "metal"
    arch:          "host", "sm_80", "gfx942", …; "" where the kind has only one
    flags:         what iree-compile is called with for this target
    driver:        name of the IREE HAL driver that runs it
    named_level:   CPU targets: the ISA level, but for "host"
    cpu_features:  CPU targets: LLVM's names of what IREE's own code for it may use, as far
                   as one CPU has it and another does not
    """

    kind: str
    arch: str
    flags: tuple[str, ...]
    driver: str
    named_level: IsaLevel | None = None
    cpu_features: tuple[str, ...] = ()

    @property
    def isa_level(self) -> IsaLevel | None:
        """The level whose C kernels may be used: for "host" the best that this machine has.

        None if there is none, as on a CPU without AVX2 and for all that is not a CPU.
        """
        return host_level() if self.is_cpu and self.arch == "host" else self.named_level

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

    @property
    def kernel_provider(self) -> str | None:
        """The provider of llmir's own kernels for it; None on a CPU without a level, on Metal."""
        return None if self.is_cpu and self.isa_level is None else KERNEL_PROVIDERS.get(self.kind)


def _cpu(
    arch: str,
    llvm_cpu: str,
    isa_level: IsaLevel | None = None,
    *,
    llvm_features: tuple[str, ...] = (),
    cpu_features: tuple[str, ...] = (),
) -> Target:
    flags = [
        "--iree-hal-target-device=local",
        "--iree-hal-local-target-device-backends=llvm-cpu",
        f"--iree-llvmcpu-target-cpu={llvm_cpu}",
    ]
    if llvm_features:
        plus = ",".join(f"+{f}" for f in llvm_features)
        flags.append(f"--iree-llvmcpu-target-cpu-features={plus}")
    if isa_level is not None:
        flags.append(f"--iree-llvmcpu-target-triple={isa_level.arch}-unknown-linux-gnu")
    return Target(
        kind="cpu",
        arch=arch,
        flags=tuple(flags),
        driver="local-task",
        named_level=isa_level,
        cpu_features=cpu_features,
    )


def _cpu_of_level(isa_level: IsaLevel) -> Target:
    """A CPU that has what a level needs, and nothing that it does not."""
    return _cpu(
        isa_level.name,
        isa_level.llvm_cpu,
        isa_level,
        llvm_features=isa_level.llvm_features,
        cpu_features=tuple(f for f in isa_level.features if not is_amx(f)),
    )


def _named_cpu(name: str) -> Target:
    level_name, more = NAMED_CPUS[name]
    base = _cpu_of_level(level(level_name))
    return _cpu(name, name, level(level_name), cpu_features=(*base.cpu_features, *more))


def _cuda(arch: str) -> Target:
    flags = ("--iree-hal-target-device=cuda", f"--iree-cuda-target={arch}")
    return Target(kind="cuda", arch=arch, flags=flags, driver="cuda")


def _rocm(arch: str) -> Target:
    flags = ("--iree-hal-target-device=hip", f"--iree-rocm-target={arch}")
    return Target(kind="rocm", arch=arch, flags=flags, driver="hip")


def _vulkan(profile: str) -> Target:
    flags = ("--iree-hal-target-device=vulkan", f"--iree-vulkan-target={profile}")
    return Target(kind="vulkan", arch=profile, flags=flags, driver="vulkan")


def _single(kind: str) -> Target:
    return Target(kind=kind, arch="", flags=(f"--iree-hal-target-device={kind}",), driver=kind)


TARGETS: dict[str, Target] = {
    t.name: t
    for t in (
        _cpu("host", "host"),
        *(_cpu_of_level(x) for x in LEVELS),
        *(_named_cpu(name) for name in NAMED_CPUS),
        *(_cuda(a) for a in CUDA_ARCHES),
        *(_rocm(a) for a in ROCM_ARCHES),
        _single("vulkan"),
        *(_vulkan(p) for p in VULKAN_PROFILES),
        _single("metal"),
    )
}
ALIASES = {
    "cpu": "cpu:host",
    "cpu:aarch64": "cpu:aarch64-neon",
    "cuda": "cuda:sm_80",
    "rocm": "rocm:gfx942",
    "hip": "rocm:gfx942",
    "vulkan:vp_android_baseline_2022": "vulkan",
    **{f"hip:{a}": f"rocm:{a}" for a in ROCM_ARCHES},
}


_DRIVER_ALIASES = {"cpu": "local-task", "rocm": "hip"}
_KINDS = {"local-task": "cpu", "local-sync": "cpu", "hip": "rocm"}


def split_device(uri: str) -> tuple[str, str | None]:
    """The IREE driver and the path of a device URI: ("vulkan", "0") of "vulkan://0".

    Without a path it is the driver's first device, None.  "cpu" and "rocm" are names for
    local-task and hip.  Raises OptionError: it is no URI, such as torch's "cuda:0".
    """
    driver, separator, path = uri.partition("://")
    if ":" in driver or not driver:
        name = driver.partition(":")[0] or "vulkan"
        raise OptionError(
            f"a device is written DRIVER or DRIVER://NUMBER, such as {name}://0, not {uri!r}; "
            "`llmir targets` lists those there are"
        )
    return _DRIVER_ALIASES.get(driver, driver), path if separator else None


def kind_of_device(uri: str) -> str:
    """The target kind that runs on a device: "cpu" for "local-task", "vulkan" for "vulkan://0"."""
    driver, _ = split_device(uri)
    return _KINDS.get(driver, driver)


def resolve(name: str | Target) -> Target:
    """The target of that name or alias.

    Raises UnknownNameError listing the names, and those that are close.
    """
    if isinstance(name, Target):
        return name
    if not isinstance(name, str):
        raise OptionError(f"a target is a name such as 'cpu', not {name!r}")
    target = TARGETS.get(ALIASES.get(name, name))
    if target is None:
        raise UnknownNameError("target", name, [*TARGETS, *ALIASES], hint=_HINTS.get(name, ""))
    return target
