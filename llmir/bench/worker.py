"""The process that measures: `python -m llmir.bench.worker`, a job on stdin, a result on stdout.

    {"job": "limits", "num_threads": 2}                                → MachineLimits
    {"job": "case", "path": …, "case": {…}, "options": {…}, "repeats": 5}  → Measured
    {"job": "device_case", …as "case"}                                     → Measured, with energy
    {"job": "device_limits", "device": …, "files": {…}}                    → DeviceLimits
    {"job": "ops", "path": …, "module_file": …, "case": {…}, "options": {…}}  → MeasuredOps
    {"job": "throughput", "path": …, "workload": {…}, "options": {…}, "config": {…}} → Throughput

A fresh process per job: its peak memory and load time are those of the one row, and BLAS
can be told its threads before numpy loads.  A result is {"result": {…}}, or {"error":
[kind, message]} for an error of llmir's own; `run_job` raises it again on the other side.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from llmir import errors
from llmir.errors import DeviceError, LlmirError

_BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Run a job in a process of its own and return its result.

    Raises: the LlmirError that ended it; DeviceError if the process died of something else.
    """
    done = subprocess.run(
        [sys.executable, "-m", "llmir.bench.worker"],
        input=json.dumps(job),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise DeviceError(
            f"the measuring process ended with status {done.returncode}; its messages are above"
        )
    # Whatever a driver may print comes before.
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if "error" in answer:
        kind, message = answer["error"]
        error = LlmirError.__new__(getattr(errors, kind))
        error.args = (message,)
        raise error
    return dict(answer["result"])


def _limits(job: dict[str, Any]) -> Any:
    for name in _BLAS_THREADS:
        os.putenv(name, "1")
    from llmir.bench.limits import measure_limits

    return measure_limits(job["num_threads"])


def _case(job: dict[str, Any]) -> Any:
    from llmir.bench.cases import Case
    from llmir.bench.measure import RunOptions, measure_case

    return measure_case(
        Path(job["path"]), Case(**job["case"]), RunOptions(**job["options"]), job["repeats"]
    )


def _device_case(job: dict[str, Any]) -> Any:
    from llmir.bench.cases import Case
    from llmir.bench.energy import meter_for
    from llmir.bench.measure import RunOptions, measure_case

    options = RunOptions(**job["options"])
    meter = meter_for(options.device or "local-task")
    return measure_case(Path(job["path"]), Case(**job["case"]), options, job["repeats"], meter)


def _device_limits(job: dict[str, Any]) -> Any:
    from llmir.bench.devices.limits import measure_device

    return measure_device(job["device"], job["files"], job["matmul_size"])


def _ops(job: dict[str, Any]) -> Any:
    from llmir.bench.cases import Case
    from llmir.bench.measure import RunOptions
    from llmir.bench.op_measure import measure_ops

    return measure_ops(
        Path(job["path"]),
        Path(job["module_file"]),
        Case(**job["case"]),
        RunOptions(**job["options"]),
    )


def _throughput(job: dict[str, Any]) -> Any:
    from llmir.bench.measure import RunOptions
    from llmir.bench.throughput import Workload, measure_throughput
    from llmir.engine import SchedulerConfig

    return measure_throughput(
        Path(job["path"]),
        Workload(**job["workload"]),
        RunOptions(**job["options"]),
        SchedulerConfig(**job["config"]),
    )


JOBS = {
    "limits": _limits,
    "case": _case,
    "device_case": _device_case,
    "device_limits": _device_limits,
    "ops": _ops,
    "throughput": _throughput,
}


def main() -> None:
    job = json.load(sys.stdin)
    try:
        result = JOBS[job["job"]](job)
        answer: dict[str, Any] = {"result": dataclasses.asdict(result)}
    except LlmirError as error:
        answer = {"error": [type(error).__name__, str(error)]}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
