"""What this machine is: its CPU's architecture and instruction sets, its cores and memory."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

# LLVM's feature names that decide whether code runs, by their names in /proc/cpuinfo once
# dots, dashes and underscores are taken out of both.  LLVM lists more (prefetch hints,
# string moves, kernel-only instructions); generated code does not depend on those.
_CHECKED = frozenset(
    "sse3 ssse3 sse41 sse42 avx avx2 fma f16c bmi2 movbe popcnt "
    "avx512f avx512bw avx512cd avx512dq avx512vl avx512vnni avx512bf16 avx512fp16 "
    "avx512vbmi avx512vbmi2 avx512ifma avx512bitalg avx512vpopcntdq avxvnni "
    "amxtile amxint8 amxbf16 gfni vaes vpclmulqdq "
    "neon dotprod i8mm bf16 sve sve2".split()
)
_CPUS = Path("/sys/devices/system/cpu")
# Linux's documentation, arch/x86/xstate: how a process asks for AMX.
_SYS_ARCH_PRCTL = 158
_ARCH_REQ_XCOMP_PERM = 0x1023
_XFEATURE_XTILEDATA = 18
_SPELLINGS = {"pni": "sse3", "asimddp": "dotprod", "asimd": "neon"}


@dataclass(frozen=True, slots=True)
class HostCpu:
    """The CPU: architecture ("x86_64", "aarch64"), model name, normalised feature names."""

    arch: str
    model: str
    features: frozenset[str]

    def missing(self, arch: str, features: tuple[str, ...]) -> list[str]:
        """What of an architecture and LLVM feature names this CPU lacks."""
        if arch != self.arch:
            return [f"the {arch} architecture (this is {self.arch})"]
        wanted = {f: normal_feature(f) for f in features}
        return [f for f, n in wanted.items() if n in _CHECKED and n not in self.features]


@functools.cache
def host_cpu() -> HostCpu:
    """This machine's CPU, from /proc/cpuinfo."""
    path = Path("/proc/cpuinfo")
    text = path.read_text() if path.exists() else ""
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    model = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    machine = platform.machine().lower()
    features = frozenset(normal_feature(f) for f in (flags[1].split() if flags else ()))
    return HostCpu(
        arch={"arm64": "aarch64", "amd64": "x86_64"}.get(machine, machine),
        model=model[1] if model else platform.processor(),
        features=features,
    )


@functools.cache
def amx_refusal() -> str:
    """Why this process may not use AMX, "" if it may; asks the kernel, once.

    Linux saves the state of AMX's tiles, 8 KiB a thread, only for processes that asked;
    the permission is for all threads, those that run already too.
    """
    if not any(map(is_amx, host_cpu().features)):
        return "this CPU has none"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA) == 0:
        return ""
    return f"the kernel refuses it: {os.strerror(ctypes.get_errno())}"


def is_amx(feature: str) -> bool:
    """Whether a feature is one of AMX, which a process must ask the kernel for."""
    return normal_feature(feature).startswith("amx")


def missing_here(arch: str, features: tuple[str, ...]) -> list[str]:
    """What code that uses these LLVM features lacks in this process: the CPU's, the kernel's."""
    missing = host_cpu().missing(arch, features)
    if not missing and any(map(is_amx, features)) and (why := amx_refusal()):
        return [f"AMX ({why})"]
    return missing


def num_cores() -> int:
    """Physical cores that this process may use.

    Two threads of one core share its arithmetic units: a second worker there only
    takes the first one's time.
    """
    return len({_siblings(cpu) for cpu in os.sched_getaffinity(0)})


def _siblings(cpu: int) -> str:
    """The CPUs that share a core with one, as Linux lists them; by itself where it does not."""
    path = _CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list"
    try:
        return path.read_text().strip()
    except OSError:
        return str(cpu)


def available_bytes() -> int:
    """Memory that can be had without swapping, as the kernel estimates it."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return int(os.sysconf("SC_PHYS_PAGES")) * int(os.sysconf("SC_PAGE_SIZE"))


def normal_feature(feature: str) -> str:
    """A feature by one name, whether LLVM or /proc/cpuinfo wrote it."""
    plain = re.sub(r"[._-]", "", feature.lower())
    return _SPELLINGS.get(plain, plain)
