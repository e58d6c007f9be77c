"""What a process and all that it started take: memory and CPU time, from /proc.

A server is several processes; they share the process group that it was started with.  Where
there is no /proc nothing is known.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_PROC = Path("/proc")


def members(group: int) -> list[Path]:
    """The directories in /proc of the processes of a group."""
    found = []
    for place in _PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            if int(_fields(place)[2]) == group:
                found.append(place)
    return found


def cpu_seconds(group: int) -> float:
    """CPU time of the group's processes so far, and of those that they waited for."""
    ticks = 0
    for place in members(group):
        with contextlib.suppress(OSError):
            ticks += sum(int(word) for word in _fields(place)[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def forget_peaks(group: int) -> None:
    """Have the most that was resident count from now on; Linux alone."""
    for place in members(group):
        with contextlib.suppress(OSError):
            (place / "clear_refs").write_text("5")


def peak_bytes(group: int) -> int | None:
    """The sum of the most that each process had resident; of files mapped, the pages touched.

    What two processes share counts twice, and their peaks need not have been at one time.
    None: there is no such process.
    """
    total = 0
    for place in members(group):
        with contextlib.suppress(OSError):
            for line in (place / "status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    total += int(line.split()[1]) * 1024
    return total or None


def _fields(place: Path) -> list[str]:
    """Of /proc/*/stat those after the name, which may hold spaces: state, parent, group, …"""
    return (place / "stat").read_text().rpartition(")")[2].split()
