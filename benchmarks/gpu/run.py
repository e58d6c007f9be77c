"""Measure what prepare.py compiled on this machine's GPU; see README.md here.

    python benchmarks/gpu/run.py DIRECTORY [--device cuda] [--seconds 480] [--json FILE]

Needs numpy and iree.runtime; torch, where it is there, for the device's limits and its own
numbers.  Writes a table to stdout as it goes, and everything to FILE.  Weights are random,
made here: each parameter is a piece of a pool that is valid for its format.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import iree.runtime as rt
import numpy as np
import torch_side

Array = np.ndarray[Any, Any]
ELEMENTS = {
    "f32": rt.HalElementType.FLOAT_32,
    "i32": rt.HalElementType.SINT_32,
    "bf16": rt.HalElementType.BFLOAT_16,
    "i8": rt.HalElementType.INT_8,
}
BYTES = {"f32": 4, "i32": 4, "bf16": 2, "i8": 1}
_POOL_BYTES = 64 << 20


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


# -- arrays on the device --------------------------------------------------------------------------


def put(device: Any, array: Array, dtype: str) -> Any:
    """A buffer view; bf16 is given as float32 or as its bits."""
    if dtype == "bf16" and array.dtype == np.float32:
        bits = array.view(np.uint32)
        array = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return device.allocator.allocate_buffer_copy(
        memory_type=rt.MemoryType.DEVICE_LOCAL,
        allowed_usage=rt.BufferUsage.DEFAULT,  # one that can be mapped may be managed memory
        device=device,
        buffer=np.ascontiguousarray(array),
        element_type=ELEMENTS[dtype],
    )


def get(device: Any, view: Any, dtype: type[np.generic]) -> Array:
    """A copy of a buffer view of 32-bit elements, through a staging buffer."""
    shape = tuple(view.shape)
    staging = device.allocator.allocate_buffer(
        memory_type=rt.MemoryType.HOST_LOCAL | rt.MemoryType.DEVICE_VISIBLE,
        allowed_usage=rt.BufferUsage.DEFAULT | rt.BufferUsage.MAPPING,
        allocation_size=int(np.prod(shape, dtype=np.int64)) * 4,
    )
    done = device.create_semaphore(0)
    device.queue_copy(view.get_buffer(), staging, rt.HalFence(0), rt.HalFence.create_at(done, 1))
    done.wait(1)
    element = ELEMENTS["f32" if dtype is np.float32 else "i32"]
    mapped = rt.HalBufferView(staging, shape, element).map()
    found: Array = np.array(mapped.asarray(shape, np.dtype(dtype)))
    return found


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


# -- whole steps -----------------------------------------------------------------------------------


class Step:
    """A module of prepare.py's with random weights on the device."""

    def __init__(self, device: Any, instance: Any, path: Path) -> None:
        self.device, self.about = device, json.loads(path.with_suffix(".json").read_text())
        self.spec = self.about["model"]
        start = time.monotonic()
        index = rt.ParameterIndex()
        self._pools: dict[str, Array] = {}
        self.weight_bytes = self.read_bytes = 0
        for parameter in self.about["parameters"]:
            array = self._parameter(parameter)
            index.add_buffer(parameter["name"], array)
            self.weight_bytes += array.nbytes
            # Of a table that is no head as well a step reads a few rows.
            if not parameter["name"].startswith(("model.embed_tokens", "rope_table")):
                self.read_bytes += array.nbytes
        provider = index.create_provider("model")
        modules = [
            rt.create_hal_module(instance, device),
            rt.create_io_parameters_module(instance, provider),
            rt.VmModule.mmap(instance, str(path)),
        ]
        self._index, self._context = index, rt.VmContext(instance, modules)
        self._function = modules[2].lookup_function("step_greedy")
        self.load_seconds = time.monotonic() - start
        self._kv: list[Any] = []

    def _parameter(self, parameter: dict[str, Any]) -> Array:
        count = int(np.prod(parameter["shape"], dtype=np.int64))
        form, dtype = parameter["packed"], parameter["dtype"]
        if "norm" in parameter["name"] and dtype == "f32":
            return np.ones(count, np.float32)
        if parameter["name"] == "rope_table":
            return self._rope_table(parameter["shape"])
        kind = form or dtype
        if kind not in self._pools or self._pools[kind].nbytes < count * BYTES[dtype]:
            self._pools[kind] = self._pool(kind, count * BYTES[dtype])
        return self._pools[kind][: count * BYTES[dtype]]

    def _pool(self, kind: str, num_bytes: int) -> Array:
        """uint8, whole sections: of bf16 and float32 small numbers, of integers any."""
        rng = np.random.default_rng(0)
        if kind == "bf16":
            numbers = rng.standard_normal(_POOL_BYTES // 2, np.float32) * np.float32(0.02)
            piece = (numbers.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        elif kind == "f32":
            piece = rng.uniform(0.002, 0.004, _POOL_BYTES // 4).astype(np.float32).view(np.uint8)
        elif kind.startswith("int4_g"):
            section = self.about["section_bytes"][kind]
            sections = rng.integers(0, 256, (_POOL_BYTES // section, section), np.uint8)
            scales = rng.uniform(0.002, 0.004, (len(sections), 16)).astype(np.float32)
            sections[:, :64] = scales.view(np.uint8)
            piece = sections.reshape(-1)
        else:
            assert kind == "i8", f"no random weights for {kind}"
            piece = rng.integers(0, 256, _POOL_BYTES, np.uint8)
        return np.tile(piece, -(-num_bytes // len(piece)))

    def _rope_table(self, shape: list[int]) -> Array:
        positions, dim = shape
        rates = self.spec["rope_theta"] ** (-np.arange(0, dim, 2) / dim)
        angles = np.arange(positions)[:, None] * rates
        table = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
        return table.astype(np.float32).reshape(-1)

    def start(self, num_seqs: int, positions: int) -> None:
        """Pages for so many sequences of so many positions, zeros."""
        page_size = self.about["page_size"]
        self._columns = -(-positions // page_size)
        pages = num_seqs * self._columns + 1
        shape = (pages, *self.about["page_shape"])
        self.kv_token_bytes = int(np.prod(shape[1:])) * 2 // page_size * self.spec["num_layers"]
        self._kv = []
        zeros = np.zeros(shape, np.uint16)
        for _ in range(self.spec["num_layers"]):
            self._kv.append(put(self.device, zeros, "bf16"))
        order = np.random.default_rng(1).permutation(np.arange(1, pages, dtype=np.int32))
        self._table = order.reshape(num_seqs, self._columns)

    def __call__(self, num_seqs: int, first: int, count: int) -> Array:
        """`count` tokens of each sequence from position `first` on; the likeliest next ones."""
        page_size = self.about["page_size"]
        position = np.tile(np.arange(first, first + count), num_seqs)
        seq = np.repeat(np.arange(num_seqs), count)
        slots = self._table[seq, position // page_size] * page_size + position % page_size
        tokens = np.arange(num_seqs * count) * 7 % self.spec["vocab_size"]
        arguments = rt.VmVariantList(8 + len(self._kv))
        for array in (
            *(tokens, position, seq, np.arange(num_seqs + 1) * count),
            *(np.full(num_seqs, first + count), self._table[:num_seqs][None], slots[None]),
            np.arange(1, num_seqs + 1) * count - 1,
        ):
            arguments.push_ref(put(self.device, array.astype(np.int32), "i32"))
        for pool in self._kv:
            arguments.push_ref(pool)
        results = rt.VmVariantList(1)
        self._context.invoke(self._function, arguments, results)
        return get(self.device, results.get_as_object(0, rt.HalBufferView), np.int32)

    @property
    def operations_per_token(self) -> float:
        """Of the matrices that all tokens go through, without the head and attention."""
        s = self.spec
        heads = (s["num_heads"] + 2 * s["num_kv_heads"]) * s["head_dim"]
        layer = s["hidden_size"] * (heads + s["num_heads"] * s["head_dim"])
        layer += 3 * s["hidden_size"] * s["intermediate_size"]
        return 2.0 * layer * s["num_layers"]


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
    tokens = step(work.seqs, work.depth, work.tokens)
    begun = time.perf_counter()
    step(work.seqs, work.depth, work.tokens)
    once = time.perf_counter() - begun
    budget = min(left, 15.0)
    seconds = once
    if once < budget:
        seconds = median_seconds(lambda: step(work.seqs, work.depth, work.tokens), 20, budget)
    row: dict[str, Any] = {"ms": 1e3 * seconds, "tok/s": work.seqs * work.tokens / seconds}
    if work.tokens == 1:
        moved = step.read_bytes + work.seqs * (work.depth + 1) * step.kv_token_bytes
        row["GB/s"] = moved / seconds / 1e9
        if "bandwidth" in limits:
            row["share of bandwidth"] = moved / seconds / limits["bandwidth"]
    else:
        row["TFLOP/s"] = step.operations_per_token * work.tokens / seconds / 1e12
        if "matrix" in limits:
            row["share of matrix rate"] = row["TFLOP/s"] * 1e12 / limits["matrix"]
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
        iree=rt.version.VERSION if hasattr(rt, "version") else "unknown",
    )  # fmt: skip
    limits = torch_side.measure(results.add)
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
            for work in workloads("tiny" in path.stem):
                if portable and work.tokens > 128:
                    # Loops over K at 8B's size take minutes for a whole prompt.
                    work = Workload(f"{work.name}, 128 of them", 1, 0, 128)
                name = f"{path.stem} {work.name}"
                if clock.left < 10:
                    results.add(name, left_out=f"{clock.left:.0f} s were left")
                    continue
                results.add(name, **measure_step(step, work, limits, clock.left / 4))
            del step
        except Exception:  # as above
            failed += 1
            results.add(path.stem, raised=traceback.format_exc(limit=3))
    print(f"{failed} failed; {time.monotonic() - clock.start:.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
