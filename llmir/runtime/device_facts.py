"""What a driver says of a device: its kind, memory, architecture and storage types.

IREE's Python API has one source for all of it, the text of `HalDriver.dump_device_info`,
whose lines differ by driver.  What is not in it stays unknown (None), and nothing is
guessed.  The lines of CUDA and HIP are those in the 3.13 runtime's strings; no such
device was at hand.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

DEVICE_LOCAL_HEAP = 1
"""VK_MEMORY_HEAP_DEVICE_LOCAL_BIT."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """One device, as far as its driver tells.

    kind:          Vulkan: "discrete-gpu", "integrated-gpu", "virtual-gpu", "cpu" (a software
                   device) or "other"; "" elsewhere
    memory_bytes:  all the memory that the device has, whoever uses it; of Vulkan the largest heap
                   that is local to the device
    vendor:        Vulkan: the vendor's number
    arch:          CUDA: "sm_90"; HIP: "gfx942"
    features:      Vulkan: feature → whether the device has it
    """

    kind: str = ""
    memory_bytes: int | None = None
    vendor: int | None = None
    arch: str | None = None
    features: Mapping[str, bool] = field(default_factory=dict)

    @property
    def has_own_memory(self) -> bool:
        """Whether it is a GPU that shares no memory with the CPU, as far as one can tell."""
        return self.kind in ("", "discrete-gpu", "virtual-gpu")


def parse_facts(text: str) -> DeviceFacts:
    """Read what `dump_device_info` of any driver printed."""
    capability = re.search(r"^- gpu-compute-capability: (\d+)\.(\d+)$", text, re.MULTILINE)
    gfx = _line(text, r"- gpu-arch-name: (\w+)")
    vendor = _line(text, r"vendor_id: (0x[0-9a-fA-F]+)")
    return DeviceFacts(
        kind=_line(text, r"type: (\S+)") or "",
        memory_bytes=_memory(text),
        vendor=int(vendor, 16) if vendor else None,
        arch=f"sm_{capability[1]}{capability[2]}" if capability else gfx,
        features={n: v == "yes" for n, v in re.findall(r"\b(\w+)=(yes|no)\b", text)},
    )


def _memory(text: str) -> int | None:
    total = _line(text, r"- memory-total-global-memory-size: (\d+) MB")
    if total is not None:
        return int(total) << 20
    heaps = re.findall(r"^\s*\[\d+\] size=(\d+) flags=(0x[0-9a-fA-F]+)", text, re.MULTILINE)
    local = [int(size) for size, flags in heaps if int(flags, 16) & DEVICE_LOCAL_HEAP]
    return max(local, default=None)


def _line(text: str, pattern: str) -> str | None:
    found = re.search(rf"^\s*{pattern}", text, re.MULTILINE)
    return found[1] if found else None
