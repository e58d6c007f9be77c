"""What this machine can do at most: memory read bandwidth and float32 arithmetic.

Pure numpy, one Python thread per core: BLAS releases the interpreter's lock, and is
itself kept to one thread by `worker`, so that `num_threads` means the same here as in
the runtime.

Both numbers are the 90th percentile of many rounds of some milliseconds.  On a shared
machine disturbances lower most rounds, so a mean says little; the maximum says as little:
on a virtual machine a few rounds in a hundred read nearly twice as fast as all others, as
if its two cores had been put on different chips for a moment.  Median and maximum are
reported as well.

    read    sdot of two halves of a slice of 64 MiB per thread, the slices of a buffer of
            1 GiB in turn, so that no cache holds the next: two streams of loads, no
            stores.  np.add.reduce, maximum, count_nonzero and sgemv read more slowly, a
            copy also writes.
    f32     matmul of square matrices that stay in the caches, several sizes: the best one
            counts.

On two cores of a Zen 4 server CPU, nearly idle, this gave 34–37 GB/s and 207–209 GFLOP/s;
C loops with AVX-512 intrinsics gave 28 GB/s (one stream of loads per core) and 233
GFLOP/s (independent FMAs on registers, which no matmul reaches).  On two cores of a Zen 5,
whose FMA units are twice as wide, small C programs gave 38.7 GB/s and 322 GFLOP/s.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmir.host import available_bytes

BUFFER_BYTES = 1 << 30
# Rounds of a few milliseconds: long beside the start of a thread, short enough that on a
# shared machine some are not disturbed.
SLICE_BYTES = 1 << 26
MATMUL_FLOPS_PER_ROUND = 1e9
MATMUL_SIZES = (384, 512, 768, 1024)


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineLimits:
    """What was reached, and in how many rounds.

    read_bytes_per_s           90th percentile of the rounds; *_median, *_max: of them too
    f32_flops_per_s            the same, of the best matrix size
    num_threads                threads at a time
    read_round_bytes           read in each round, by all threads together
    matmul_size                rows and columns of the matrices that gave the best
    """

    num_threads: int
    read_bytes_per_s: float
    read_bytes_per_s_median: float
    read_bytes_per_s_max: float
    read_round_bytes: int
    num_read_rounds: int
    f32_flops_per_s: float
    f32_flops_per_s_median: float
    f32_flops_per_s_max: float
    matmul_size: int
    num_matmul_rounds: int

    @property
    def arithmetic(self) -> tuple[float, str]:
        """As in report.Limits."""
        return self.f32_flops_per_s, "f32"

    def better(self, other: MachineLimits) -> MachineLimits:
        """Of each limit the higher one of two measurements, with all that belongs to it."""
        better = self
        if other.read_bytes_per_s > self.read_bytes_per_s:
            better = dataclasses.replace(better, **other._fields_with("read"))
        if other.f32_flops_per_s > self.f32_flops_per_s:
            better = dataclasses.replace(
                better, **other._fields_with("f32"), **other._fields_with("matmul")
            )
        return better

    def _fields_with(self, word: str) -> dict[str, Any]:
        return {name: v for name, v in dataclasses.asdict(self).items() if word in name.split("_")}


def measure_limits(
    num_threads: int, *, seconds: float = 2.0, buffer_bytes: int = BUFFER_BYTES
) -> MachineLimits:
    """Measure both limits on `num_threads` threads; takes about twice `seconds`.

    buffer_bytes: of all threads together; must be many times the caches.  Less is taken
    where a quarter of the free memory is less.
    """
    per_thread = min(buffer_bytes, available_bytes() // 4) // num_threads
    with ThreadPoolExecutor(num_threads) as pool:
        read_bytes, read_s = _read_rounds(pool, num_threads, per_thread, seconds)
        flops, size, matmul_s = _matmul_rounds(pool, num_threads, seconds)
    return MachineLimits(
        num_threads=num_threads,
        read_bytes_per_s=read_bytes / _reached(read_s),
        read_bytes_per_s_median=read_bytes / float(np.median(read_s)),
        read_bytes_per_s_max=read_bytes / min(read_s),
        read_round_bytes=read_bytes,
        num_read_rounds=len(read_s),
        f32_flops_per_s=flops / _reached(matmul_s),
        f32_flops_per_s_median=flops / float(np.median(matmul_s)),
        f32_flops_per_s_max=flops / min(matmul_s),
        matmul_size=size,
        num_matmul_rounds=len(matmul_s),
    )


def _read_rounds(
    pool: ThreadPoolExecutor, num_threads: int, per_thread: int, seconds: float
) -> tuple[int, list[float]]:
    """Bytes read in a round, and the rounds' seconds."""
    slices = max(1, per_thread // SLICE_BYTES)
    half = per_thread // slices // 8  # elements of each of a slice's two streams
    # Written, so that the pages are there and are not all one page of zeros.
    buffers = [np.ones((slices, 2, half), np.float32) for _ in range(num_threads)]
    turn = 0

    def work() -> list[Callable[[], object]]:
        nonlocal turn
        turn = (turn + 1) % slices
        return [functools.partial(np.dot, *b[turn]) for b in buffers]

    return num_threads * 2 * half * 4, _rounds(pool, work, seconds)


def _matmul_rounds(
    pool: ThreadPoolExecutor, num_threads: int, seconds: float
) -> tuple[float, int, list[float]]:
    """Operations in a round of the best size, that size, and its rounds' seconds."""
    found = []
    for size in MATMUL_SIZES:
        repeats = max(1, round(MATMUL_FLOPS_PER_ROUND / (2 * size**3)))
        work = [_matmuls(size, repeats) for _ in range(num_threads)]
        flops = 2.0 * size**3 * repeats * num_threads
        times = _rounds(pool, functools.partial(list, work), seconds / len(MATMUL_SIZES))
        found.append((flops, size, times))
    return max(found, key=lambda f: f[0] / _reached(f[2]))


def _matmuls(size: int, repeats: int) -> Callable[[], None]:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((size, size), np.float32) for _ in range(2))
    out = np.empty_like(a)

    def run() -> None:
        for _ in range(repeats):
            np.matmul(a, b, out=out)

    return run


def _reached(seconds: list[float]) -> float:
    return float(np.percentile(seconds, 10))


def _rounds(
    pool: ThreadPoolExecutor, work: Callable[[], list[Callable[[], object]]], seconds: float
) -> list[float]:
    """Run one piece of work per thread, again and again; the seconds of each round."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        pieces = work()
        start = time.perf_counter()
        for future in [pool.submit(piece) for piece in pieces]:
            future.result()
        times.append(time.perf_counter() - start)
    return times
