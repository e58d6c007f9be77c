"""llmir bench devices on a tiny model: the CPU and Vulkan, with their shares, table, JSON, plot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

import llmir
from llmir import artifact as artifacts
from llmir.bench.cases import Case
from llmir.bench.devices import run
from llmir.bench.devices.places import Place, places_for
from llmir.bench.devices.report import text
from llmir.bench.limits import MachineLimits
from llmir.bench.measure import RunOptions
from llmir.cli import cli
from llmir.errors import DeviceError, OptionError

SMALL = [
    "--prompt-lens",
    "4",
    "--depths",
    "3",
    "--batches",
    "1",
    "--repeats",
    "1",
    "--threads",
    "1",
]


CPU = MachineLimits(
    num_threads=1,
    read_bytes_per_s=10e9,
    read_bytes_per_s_median=9e9,
    read_bytes_per_s_max=11e9,
    read_round_bytes=1,
    num_read_rounds=1,
    f32_flops_per_s=50e9,
    f32_flops_per_s_median=40e9,
    f32_flops_per_s_max=60e9,
    matmul_size=512,
    num_matmul_rounds=1,
)


@pytest.fixture(scope="module")
def both(tiny_checkpoint: Callable[..., Path]) -> Path:
    """For this CPU and for Vulkan; other tests of bench compile the same."""
    made = llmir.compile(tiny_checkpoint("llama-tied"), ["cpu", "vulkan"], weights="q8_0")
    return made.path


@pytest.mark.targets
@pytest.mark.timeout(600)
def test_every_device_is_measured_or_named(one_layer: Path, tmp_path: Path) -> None:
    # For a GPU that no test machine has, too.
    made = llmir.compile(one_layer, ["cpu", "vulkan", "metal"])
    out, plot = tmp_path / "out.json", tmp_path / "plot.svg"
    args = ["bench", "devices", str(made.path), *SMALL, "--json", str(out), "--plot", str(plot)]
    done = CliRunner().invoke(cli, args, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    document = json.loads(out.read_text())
    by_device = {d["device"]: d for d in document["devices"]}
    assert {"local-task", "vulkan://0", "metal"} <= set(by_device)
    assert by_device["metal"]["why_not_measured"].startswith("no device of the driver metal")
    for device in ("local-task", "vulkan://0"):
        found = by_device[device]
        assert [row["phase"] for row in found["rows"]] == ["prefill", "decode"]
        assert found["limits"]["read_bytes_per_s"] > 0
        for row in found["rows"]:
            assert row["tokens_per_s"] > 0
            share = max(row["bandwidth_share"], row["arithmetic_share"])
            assert row["roof_share"] == pytest.approx(share)
            assert row["peak_memory_bytes"] > 1e6
            assert row["energy_source"]
    assert by_device["vulkan://0"]["rows"][0]["device_peak_bytes"] > 0
    assert "metal: not measured: no device of the driver metal" in done.output
    assert plot.read_text().count("<circle") == 4


def test_a_serving_machine_leaves_the_shares_out(
    both: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "limits_in_process", lambda threads, on_stage: CPU)
    opened = artifacts.load(both)
    places = places_for(opened, ["cpu", "vulkan"])
    assert [p.uri for p in places] == ["local-task", "vulkan://0"]
    results = run.run_devices(
        opened, places, [Case.decode(1, 0)], RunOptions(), repeats=1, compile_limits=None
    )
    (on_cpu,), (on_vulkan,) = (r.rows for r in results)
    rate = on_cpu.row.tokens_per_s * on_cpu.row.bytes_per_token
    assert on_cpu.row.bandwidth_share == pytest.approx(rate / CPU.read_bytes_per_s)
    assert on_cpu.roof_share is not None
    assert on_vulkan.row.tokens_per_s > 0
    assert on_vulkan.device_peak_bytes
    assert on_vulkan.roof_share is None
    assert "no shares: its limits are measured by modules that the compile tools make" in text(
        results
    )


def test_a_device_that_fails_leaves_the_others(both: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def job(job: dict[str, object]) -> dict[str, object]:
        raise DeviceError("the device is lost")

    monkeypatch.setattr(run, "run_job", job)
    monkeypatch.setattr(run, "limits_in_process", lambda threads, on_stage: None)
    opened = artifacts.load(both)
    places = [p for p in places_for(opened) if p.module]
    results = run.run_devices(
        opened, places, [Case.decode(1, 0)], RunOptions(), repeats=1, compile_limits=None
    )
    assert [r.error for r in results] == ["the device is lost"] * len(places)
    assert text(results).count("FAILED: the device is lost") == len(places)


def test_a_device_that_is_not_there_is_refused(both: Path) -> None:
    opened = artifacts.load(both)
    with pytest.raises(DeviceError, match="no device 'cuda://7'; devices on this machine: .*local"):
        places_for(opened, ["cuda://7"])
    nowhere = [Place(uri="cuda://0", name="", why_not="no module")]
    with pytest.raises(OptionError, match="no device of this machine runs .*cuda://0: no module"):
        run.run_devices(
            opened, nowhere, [Case.decode(1, 0)], RunOptions(), repeats=1, compile_limits=None
        )
