"""Energy: RAPL's counters from a made-up powercap, nvidia-smi from a script, NVML from a double."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from llmir.bench.energy import meter_for


def package(powercap: Path, name: str, energy_uj: int) -> Path:
    directory = powercap / name
    directory.mkdir(parents=True)
    (directory / "energy_uj").write_text(f"{energy_uj}\n")
    (directory / "max_energy_range_uj").write_text("10000000\n")
    return directory / "energy_uj"


def test_packages_are_added_and_wrap_and_their_parts_are_not(tmp_path: Path) -> None:
    first = package(tmp_path, "intel-rapl:0", 1_000_000)
    second = package(tmp_path, "intel-rapl:1", 9_500_000)
    part = package(tmp_path, "intel-rapl:0:0", 0)
    meter = meter_for("local-task", powercap=tmp_path)
    meter.begin()
    first.write_text("3000000\n")
    second.write_text("500000\n")
    part.write_text("5000000\n")
    assert meter.end() == pytest.approx(2.0 + 1.0)
    assert meter.source == "RAPL"


def test_what_tells_nothing_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meter = meter_for("local-task", powercap=tmp_path)
    meter.begin()
    assert meter.end() is None
    assert meter.source == "no RAPL counters on this machine"
    counter = package(tmp_path, "intel-rapl:0", 0)
    counter.unlink()  # as one that may not be read
    unreadable = meter_for("local-task", powercap=tmp_path)
    assert unreadable.source == f"cannot read {counter}: No such file or directory"
    assert meter_for("vulkan://0").source == "the driver vulkan tells no energy"
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert meter_for("cuda://0").source == "neither nvidia-ml-py nor nvidia-smi here"


def test_power_of_nvidia_smi_is_added_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        f"#!{sys.executable}\nimport sys, time\nassert '--id=3' in sys.argv\n"
        "for watts in ('100.0', '[N/A]', '300.0'):\n    print(watts, flush=True)\ntime.sleep(60)\n"
    )
    tool.chmod(0o755)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    meter = meter_for("cuda://3")
    start = time.perf_counter()
    meter.begin()
    while len(meter._watts) < 2:  # type: ignore[attr-defined]
        time.sleep(0.01)
    joules = meter.end()
    most = 200 * (time.perf_counter() - start)
    assert joules is not None
    assert 0 < joules <= most


def test_nvml_counts_millijoules(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([5_000, 6_000, 8_500])
    nvml = SimpleNamespace(
        NVMLError=RuntimeError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: next(counts),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    meter = meter_for("cuda://0")  # asks once, whether it can
    meter.begin()
    assert meter.end() == pytest.approx(2.5)
    assert meter.source == "NVML"
