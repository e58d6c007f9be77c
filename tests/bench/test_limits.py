"""The machine's limits: plausible numbers, from the threads asked for."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from llmir.bench.limits import MATMUL_SIZES, MachineLimits, measure_limits
from llmir.bench.worker import run_job
from llmir.errors import ArtifactNotFoundError, DeviceError


@pytest.mark.parametrize("num_threads", [1, 2])
def test_limits_are_plausible(num_threads: int) -> None:
    limits = measure_limits(num_threads, seconds=0.1, buffer_bytes=1 << 28)
    assert limits.num_threads == num_threads
    # Any machine since about 2005 on one side, more than any has on the other.
    assert 1e9 < limits.read_bytes_per_s_median <= limits.read_bytes_per_s < 1e13
    assert limits.read_bytes_per_s <= limits.read_bytes_per_s_max
    assert 1e9 < limits.f32_flops_per_s_median <= limits.f32_flops_per_s < 1e15
    assert limits.f32_flops_per_s <= limits.f32_flops_per_s_max
    assert limits.matmul_size in MATMUL_SIZES
    assert limits.read_round_bytes == num_threads << 26
    assert limits.num_read_rounds >= 3
    assert limits.num_matmul_rounds >= 3


def test_the_better_of_two_takes_each_limit_whole() -> None:
    first = MachineLimits(
        num_threads=2,
        read_bytes_per_s=5.0,
        read_bytes_per_s_median=4.0,
        read_bytes_per_s_max=5.5,
        read_round_bytes=64,
        num_read_rounds=10,
        f32_flops_per_s=7.0,
        f32_flops_per_s_median=6.0,
        f32_flops_per_s_max=7.5,
        matmul_size=512,
        num_matmul_rounds=11,
    )
    second = dataclasses.replace(
        first,
        read_bytes_per_s=4.5,
        read_bytes_per_s_median=4.4,
        read_bytes_per_s_max=9.0,
        num_read_rounds=20,
        f32_flops_per_s=8.0,
        f32_flops_per_s_median=5.0,
        f32_flops_per_s_max=9.5,
        matmul_size=768,
        num_matmul_rounds=21,
    )
    both = dataclasses.replace(
        second,
        read_bytes_per_s=5.0,
        read_bytes_per_s_median=4.0,
        read_bytes_per_s_max=5.5,
        num_read_rounds=10,
    )
    assert first.better(second) == both
    assert second.better(first) == both


def test_an_error_in_the_measuring_process_is_raised_here(tmp_path: Path) -> None:
    job = {
        "job": "case",
        "path": str(tmp_path),
        "case": {"phase": "decode", "batch": 1, "prompt_tokens": 0, "depth": 0},
        "options": {},
        "repeats": 1,
    }
    with pytest.raises(ArtifactNotFoundError, match="no artifact at"):
        run_job(job)


def test_a_measuring_process_that_dies_is_a_device_error(capfd: pytest.CaptureFixture) -> None:
    with pytest.raises(DeviceError, match="ended with status 1"):
        run_job({"job": "no such job"})
    assert "no such job" in capfd.readouterr().err


def test_blas_has_one_thread_in_the_measuring_process() -> None:
    """Or a limit of one thread would be that of all cores."""
    code = "import llmir.bench.worker, sys; assert 'numpy' not in sys.modules, 'numpy is loaded'"
    subprocess.run([sys.executable, "-c", code], check=True)
