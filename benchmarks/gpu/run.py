"""Measure what prepare.py compiled on this machine's GPU; see README.md here.

    python benchmarks/gpu/run.py DIRECTORY [--device cuda] [--seconds 480] [--json FILE]

Needs numpy and iree.runtime; torch, where it is there, for the device's limits and its own
numbers.  Writes a table to stdout as it goes, and everything to FILE.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import iree.runtime as rt
import numpy as np
from arrays import Array, get, put
from attention import measure_attention, measure_mma
from iree.runtime import version
from steps import Step


@dataclass
class Clock:
    """When to stop."""

    seconds: float
    start: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.start)


@dataclass
class Results:
    """Rows (name → numbers) and lines of text, written out after each of them."""

    path: Path
    rows: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, **numbers: Any) -> None:
        self.rows[name] = numbers
        shown = ", ".join(
            f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in numbers.items()
        )
        print(f"{name}: {shown}", flush=True)
        self.path.write_text(json.dumps(self.rows, indent=1))


# -- single ops ------------------------------------------------------------------------------------


def check_op(device: Any, instance: Any, path: Path) -> dict[str, Any]:
    """The largest difference from the reference, and whether rows keep their bits in batches."""
    data = np.load(path.with_suffix(".npz"))
    about = json.loads(str(data["about"]))
    numbers = sorted(int(k.removeprefix("operand_")) for k in data if k.startswith("operand_"))
    operands = {i: data[f"operand_{i}"] for i in numbers}
    code = rt.VmModule.mmap(instance, str(path))
    context = rt.VmContext(instance, [rt.create_hal_module(instance, device), code])
    function = code.lookup_function("main")
    wanted = data["wanted"]

    def run(count: int | None) -> Array:
        arguments = rt.VmVariantList(len(operands))
        for (i, operand), dtype in zip(operands.items(), about["dtypes"], strict=True):
            given = operand[:count] if count is not None and i in about["tokens"] else operand
            arguments.push_ref(put(device, given, dtype))
        results = rt.VmVariantList(1)
        context.invoke(function, arguments, results)
        return get(device, results.get_as_object(0, rt.HalBufferView), np.float32)

    whole = run(None)
    error = float(np.abs(whole - wanted).max() / np.abs(wanted).max())
    differ = [n for n in about["batches"] if run(n).tobytes() != whole[:n].tobytes()]
    return {
        "provider": about["provider"],
        "error": error,
        "passed": bool(error <= about["tolerance"]) and not differ,
        "batches with other bits": differ or "none",
    }


def torch_numbers(results: Results, seconds: float) -> dict[str, float]:
    """torch_side.py's rows and limits, by a process that may fail or hang; {} if it does."""
    command = [sys.executable, str(Path(__file__).with_name("torch_side.py"))]
    limits: dict[str, float] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        end = threading.Timer(seconds, process.kill)
        end.start()
        for line in process.stdout:
            name, numbers = json.loads(line)
            if name == "limits for shares":
                limits = numbers
            else:
                results.add(name, **numbers)
        end.cancel()
    if process.returncode != 0:
        results.add("torch", ended_with=process.returncode, within_seconds=seconds)
    return limits


def median_seconds(call: Callable[[], Any], repeats: int, most_seconds: float) -> float:
    """The median of a few calls after one that is not counted; fewer if they take too long."""
    times: list[float] = []
    call()
    begun = time.monotonic()
    while len(times) < repeats and (not times or time.monotonic() - begun < most_seconds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@dataclass(frozen=True)
class Workload:
    """seqs sequences with `depth` other positions; `tokens` of each in a step."""

    name: str
    seqs: int
    depth: int
    tokens: int


def workloads(tiny: bool) -> list[Workload]:
    scale = 16 if tiny else 1
    return [
        Workload("decode b1", 1, 128, 1),
        Workload("decode b32 context 1024", 32, 1024 // scale, 1),
        Workload("prefill 2048", 1, 0, 2048 // scale),
    ]


def measure_step(
    step: Step, work: Workload, limits: dict[str, float], left: float
) -> dict[str, Any]:
    step.start(work.seqs, work.depth + work.tokens)
    begun = time.perf_counter()
    step.prepare(work.seqs, work.depth, work.tokens)
    inputs = time.perf_counter() - begun
    step()
    begun = time.perf_counter()
    queued = [step()]
    seconds = time.perf_counter() - begun
    budget = min(left, 15.0)
    if seconds < budget:
        seconds = median_seconds(lambda: queued.append(step()), 20, budget)
    begun = time.perf_counter()
    tokens = step.tokens()
    fetched = time.perf_counter() - begun
    row: dict[str, Any] = {"ms": 1e3 * seconds, "tok/s": work.seqs * work.tokens / seconds}
    row |= {
        "host ms until queued": 1e3 * statistics.median(queued),
        "ms to send inputs": 1e3 * inputs,
        "ms to fetch tokens": 1e3 * fetched,
    }
    if work.tokens == 1:
        moved = step.read_bytes + work.seqs * (work.depth + 1) * step.kv_token_bytes
        row["GB/s"] = moved / seconds / 1e9
        if "bandwidth" in limits:
            row["share of bandwidth"] = moved / seconds / limits["bandwidth"]
    else:
        row["TFLOP/s"] = step.operations_per_token * work.tokens / seconds / 1e12
        if "matrix" in limits:
            row["share of matrix rate"] = row["TFLOP/s"] * 1e12 / limits["matrix"]
        if "mma.sync" in limits:
            row["share of mma.sync's rate"] = row["TFLOP/s"] * 1e12 / limits["mma.sync"]
    row["tokens sound"] = bool((tokens >= 0).all())
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure compiled modules on this device.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=480.0)
    parser.add_argument("--json", type=Path, default=Path("gpu-results.json"))
    options = parser.parse_args()
    clock, results = Clock(options.seconds), Results(options.json)
    results.add(
        "run", date=time.strftime("%Y-%m-%d"), host=platform.platform(), device=options.device,
        iree=version.VERSION,
    )  # fmt: skip
    device, instance = rt.get_device(options.device), rt.VmInstance()
    failed = 0
    for path in sorted((options.directory / "ops").glob("*.vmfb")):
        try:
            row = check_op(device, instance, path)
            failed += not row["passed"]
            results.add(f"op {path.stem}", **row)
        except Exception:  # one op that does not run must not keep the others from running
            failed += 1
            results.add(f"op {path.stem}", passed=False, raised=traceback.format_exc(limit=3))

    def run_alone(name: str, measure: Callable[..., None], pattern: str) -> int:
        paths = sorted(options.directory.glob(pattern))
        try:
            measure(device, instance, paths, results.add, min(15.0, clock.left / 6))
        except Exception:  # as above
            results.add(name, raised=traceback.format_exc(limit=3))
            return 1
        return 0

    failed += run_alone("mma.sync", measure_mma, "mma_rate.vmfb")
    failed += run_alone("attention", measure_attention, "attention/c*.vmfb")
    limits = torch_numbers(results, min(120.0, clock.left / 3))
    if "mma.sync" in results.rows and "TFLOP/s" in results.rows["mma.sync"]:
        limits["mma.sync"] = 1e12 * results.rows["mma.sync"]["TFLOP/s"]
    # Kernels first, portable code beside them with the time that is left.
    order = sorted(options.directory.glob("*.vmfb"), key=lambda p: "portable" in p.stem)
    for path in order:
        portable = "portable" in path.stem
        if clock.left < 30:
            results.add(path.stem, left_out=f"{clock.left:.0f} s were left")
            continue
        try:
            step = Step(device, instance, path)
            results.add(
                f"{path.stem} load", seconds=step.load_seconds, weights_GB=step.weight_bytes / 1e9
            )
            works = workloads("tiny" in path.stem)
            if portable:
                # Loops over K at 8B's size may take minutes for a whole prompt: 128 of it first.
                works.insert(2, Workload("prefill 128", 1, 0, 128))
            slowest = 0.0
            for work in works:
                name = f"{path.stem} {work.name}"
                if clock.left < 10:
                    results.add(name, left_out=f"{clock.left:.0f} s were left")
                    continue
                # Run twice at least, and a prompt takes more than in proportion to its tokens.
                if 3 * slowest * work.tokens / 128 > clock.left:
                    results.add(name, left_out=f"it would take more than {clock.left:.0f} s")
                    continue
                row = measure_step(step, work, limits, clock.left / 4)
                results.add(name, **row)
                if work.tokens == 128:
                    slowest = row["ms"] / 1e3
            del step
        except Exception:  # as above
            failed += 1
            results.add(path.stem, raised=traceback.format_exc(limit=3))
    if clock.left > 60:
        failed += run_alone("portable attention", measure_attention, "attention/portable.vmfb")
    else:
        results.add("portable attention", left_out=f"{clock.left:.0f} s were left")
    print(f"{failed} failed; {time.monotonic() - clock.start:.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
