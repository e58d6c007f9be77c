"""Energy that a device took, where it tells: joules between two moments.

    CPU     RAPL through Linux's powercap, all packages: energy_uj, for root alone on most machines
    NVIDIA  NVML's counter, with the package nvidia-ml-py; else the power that nvidia-smi shows,
            ten times a second, added up

What is told is of the whole device, whoever used it.  Others tell nothing here.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Protocol

POWERCAP = Path("/sys/class/powercap")
SMI_INTERVAL_MS = 100


class Meter(Protocol):
    """`begin`, then `end`, once; source: where the number comes from, or why there is none."""

    source: str

    def begin(self) -> None: ...

    def end(self) -> float | None:
        """Joules since `begin`; None if the device does not tell."""
        ...


class NoMeter:
    """A device that does not tell."""

    def __init__(self, source: str) -> None:
        self.source = source

    def begin(self) -> None:
        pass

    def end(self) -> float | None:
        return None


class Rapl:
    """The packages of /sys/class/powercap; their counters wrap at max_energy_range_uj."""

    def __init__(self, packages: list[Path]) -> None:
        self.source = "RAPL"
        self._packages = packages
        self._before: list[int] = []

    def begin(self) -> None:
        self._before = [_number(p / "energy_uj") for p in self._packages]

    def end(self) -> float | None:
        total = 0
        for package, before in zip(self._packages, self._before, strict=True):
            used = _number(package / "energy_uj") - before
            total += used if used >= 0 else used + _number(package / "max_energy_range_uj")
        return total / 1e6


class Nvml:
    """NVML's total energy of one GPU, in mJ since the driver was loaded (Volta and later)."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self.source = "NVML"
        self._nvml, self._handle = nvml, handle
        self._before = 0

    def begin(self) -> None:
        self._before = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)

    def end(self) -> float | None:
        now = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        return float(now - self._before) / 1e3


class Smi:
    """The power that nvidia-smi shows, as a process beside: coarse where little is measured."""

    def __init__(self, tool: str, index: int) -> None:
        self.source = f"nvidia-smi, every {SMI_INTERVAL_MS} ms"
        self._command = [
            *(tool, "--query-gpu=power.draw", "--format=csv,noheader,nounits"),
            *(f"--id={index}", f"--loop-ms={SMI_INTERVAL_MS}"),
        ]
        self._watts: list[float] = []
        self._start = 0.0

    def begin(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        self._start = time.perf_counter()

    def end(self) -> float | None:
        seconds = time.perf_counter() - self._start
        self._process.terminate()
        self._process.wait()
        self._thread.join()
        if not self._watts:
            self.source = "nvidia-smi told no power"
            return None
        return seconds * sum(self._watts) / len(self._watts)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                if line.strip().replace(".", "", 1).isdigit():
                    self._watts.append(float(line))


def meter_for(device: str, *, powercap: Path = POWERCAP) -> Meter:
    """The meter of a device's URI."""
    driver, _, path = device.partition("://")
    if driver in ("cpu", "local-task", "local-sync"):
        return _rapl(powercap)
    if driver == "cuda":
        return _nvidia(int(path) if path.isdigit() else 0)
    return NoMeter(f"the driver {driver} tells no energy")


def _rapl(powercap: Path) -> Meter:
    # intel-rapl:0 is a package, intel-rapl:0:1 a part of it; AMD's are called so too.
    packages = sorted(p for p in powercap.glob("intel-rapl:*") if p.name.count(":") == 1)
    if not packages:
        return NoMeter("no RAPL counters on this machine")
    try:
        for package in packages:
            _number(package / "energy_uj")
    except OSError as error:
        return NoMeter(f"cannot read {error.filename}: {error.strerror}")
    return Rapl(packages)


def _nvidia(index: int) -> Meter:
    try:
        import pynvml
    except ImportError:
        tool = shutil.which("nvidia-smi")
        return Smi(tool, index) if tool else NoMeter("neither nvidia-ml-py nor nvidia-smi here")
    try:
        pynvml.nvmlInit()
        meter = Nvml(pynvml, pynvml.nvmlDeviceGetHandleByIndex(index))
        meter.begin()
    except pynvml.NVMLError as error:
        return NoMeter(f"NVML: {error}")
    return meter


def _number(path: Path) -> int:
    return int(path.read_text())
