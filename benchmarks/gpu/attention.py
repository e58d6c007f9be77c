"""Attention alone, and a loop of nothing but mma.sync: what the steps' numbers are held against."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import iree.runtime as rt
import numpy as np
from arrays import Array, put

PAGE_SIZE = 16
SHAPES = (("decode b32 context 1024", 32, 1024, 1), ("prefill 2048", 1, 2048, 2048))
"""Name, sequences, positions of each, and how many of the last ones ask."""
Add = Callable[..., None]


def measure_attention(
    device: Any, instance: Any, paths: Sequence[Path], add: Add, seconds: float
) -> None:
    """Modules of a chain of calls: milliseconds of one of them."""
    for path in paths:
        about = json.loads(path.with_suffix(".json").read_text())
        function, context = _load(device, instance, path)
        for name, seqs, positions, asked in SHAPES:
            positions, asked = positions // about["smaller"], max(1, asked // about["smaller"])
            given = _operands(about, seqs, positions, asked)
            views = [put(device, a, d) for a, d in zip(given, about["dtypes"], strict=True)]
            took = _seconds(context, function, views, seconds) / about["chain"]
            # Of bf16 K and V, read once for each sequence; two products for each pair.
            moved = 2 * 2 * seqs * positions * about["kv_heads"] * about["head_dim"]
            pairs = seqs * (asked * positions - asked * (asked - 1) // 2)
            work = 4 * pairs * about["heads"] * about["head_dim"]
            rate = {"GB/s": moved / took / 1e9} if asked == 1 else {"TFLOP/s": work / took / 1e12}
            add(f"attention {path.stem} {name}, a layer", ms=1e3 * took, **rate)


def _operands(about: dict[str, Any], seqs: int, positions: int, asked: int) -> list[Array]:
    rng = np.random.default_rng(0)
    columns = -(-positions // PAGE_SIZE)
    table = rng.permutation(np.arange(1, seqs * columns + 1)).reshape(seqs, columns)
    shape = (seqs * columns + 1, 2, about["kv_heads"], PAGE_SIZE, about["head_dim"])
    numbers = np.tile(np.arange(1 << 12, dtype=np.float32) % 61 / 61, -(-np.prod(shape) >> 12))
    kv = (numbers[: np.prod(shape)].view(np.uint32) >> 16).astype(np.uint16).reshape(shape)
    return [
        rng.standard_normal((seqs * asked, about["heads"], about["head_dim"]), np.float32),
        kv,
        *(
            a.astype(np.int32)
            for a in (
                table,
                np.repeat(np.arange(seqs), asked),
                np.tile(np.arange(positions - asked, positions), seqs),
                np.arange(seqs + 1) * asked,
                np.full(seqs, positions),
            )
        ),
    ]


def measure_mma(
    device: Any, instance: Any, paths: Sequence[Path], add: Add, seconds: float
) -> None:
    """mma_rate.vmfb, which prepare.py makes for CUDA."""
    if not paths:
        add("mma.sync", left_out="prepare.py makes its module for CUDA alone")
        return
    (path,) = paths
    about = json.loads(path.with_suffix(".json").read_text())
    function, context = _load(device, instance, path)
    took = _seconds(context, function, [], seconds)
    add("mma.sync", **{"ms": 1e3 * took, "TFLOP/s": about["operations"] / took / 1e12})


def _load(device: Any, instance: Any, path: Path) -> tuple[Any, Any]:
    code = rt.VmModule.mmap(instance, str(path))
    context = rt.VmContext(instance, [rt.create_hal_module(instance, device), code])
    return code.lookup_function("main"), context


def _seconds(context: Any, function: Any, views: list[Any], most: float) -> float:
    """The median of up to ten calls after one that is not counted; two at least."""
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < 2 or (len(times) < 11 and time.perf_counter() - begun < most):
        arguments, results = rt.VmVariantList(len(views)), rt.VmVariantList(1)
        for view in views:
            arguments.push_ref(view)
        start = time.perf_counter()
        context.invoke(function, arguments, results)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
