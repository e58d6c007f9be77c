"""What this machine is: its CPU's architecture and instruction sets, its cores and memory."""

from __future__ import annotations

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
        wanted = {f: _normal(f) for f in features}
        return [f for f, n in wanted.items() if n in _CHECKED and n not in self.features]


@functools.cache
def host_cpu() -> HostCpu:
    """This machine's CPU, from /proc/cpuinfo."""
    path = Path("/proc/cpuinfo")
    text = path.read_text() if path.exists() else ""
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    model = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    machine = platform.machine().lower()
    features = frozenset(_normal(f) for f in (flags[1].split() if flags else ()))
    return HostCpu(
        arch={"arm64": "aarch64", "amd64": "x86_64"}.get(machine, machine),
        model=model[1] if model else platform.processor(),
        features=features,
    )


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def available_bytes() -> int:
    """Memory that can be had without swapping, as the kernel estimates it."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return int(os.sysconf("SC_PHYS_PAGES")) * int(os.sysconf("SC_PAGE_SIZE"))


def _normal(feature: str) -> str:
    plain = re.sub(r"[._-]", "", feature.lower())
    return _SPELLINGS.get(plain, plain)
