"""What a device can do at most, by small IREE modules that the compile side made for it.

compiler/limit_modules.py has what they compute.  A rate is the 90th percentile of its rounds, as
of bench/limits.py, and a limit the best of what reaches for it:

    read    of `read`, and of `copy`, whose bytes are those read and written
    f32     of `fma_f32` and of `matmul_f32`
    matrix  of `matmul_bf16`, where the target compiles it

Buffers grow until a call takes 20 ms; those that memory is measured with also until they are
256 MiB, so that no cache holds them, or a call takes half a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import iree.runtime as rt
import numpy as np

from llmir.errors import DeviceError
from llmir.runtime.devices import IREE_ERRORS, open_device

# As in compiler/limit_modules.py, which the serving side does not import; a test compares them.
CHAIN = 8
READ_ROWS = 64
FMA_FLOPS = 2 * 8 * 256

SECONDS = 1.0
LONG_ENOUGH_S, TOO_LONG_S = 0.02, 0.5
BEYOND_CACHES_BYTES, MOST_BYTES = 1 << 28, 1 << 30
FIRST_ELEMENTS = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLimits:
    """What was reached.

    read_bytes_per_s    and which function reached it; likewise f32_flops_per_s
    matrix_flops_per_s  bf16 products into float32; None where that was not measured
    rates               of every function that ran: bytes/s or FLOP/s
    failed              function → why it did not run
    """

    read_bytes_per_s: float
    read_from: str
    f32_flops_per_s: float
    f32_from: str
    matrix_flops_per_s: float | None
    rates: dict[str, float]
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def arithmetic(self) -> tuple[float, str]:
        """As in report.Limits: the matrix unit's rate where it was measured and is higher."""
        matrix = self.matrix_flops_per_s
        if matrix is not None and matrix > self.f32_flops_per_s:
            return matrix, "bf16 products"
        return self.f32_flops_per_s, "f32"

    @classmethod
    def of(cls, rates: Mapping[str, float], failed: Mapping[str, str]) -> DeviceLimits:
        """Raises DeviceError if nothing is known of the memory, or of the arithmetic."""
        found = []
        for names in (("read", "copy"), ("fma_f32", "matmul_f32")):
            there = {name: rates[name] for name in names if name in rates}
            if not there:
                why = "; ".join(f"{n}: {failed[n]}" for n in names if n in failed)
                raise DeviceError(f"no limit of {' or '.join(names)} was measured: {why}")
            found.append(max(there.items(), key=lambda pair: pair[1]))
        (read_from, read), (f32_from, f32) = found
        return cls(
            read_bytes_per_s=read,
            read_from=read_from,
            f32_flops_per_s=f32,
            f32_from=f32_from,
            matrix_flops_per_s=rates.get("matmul_bf16"),
            rates=dict(rates),
            failed=dict(failed),
        )


def measure_device(device: str, files: Mapping[str, str], matmul_size: int) -> DeviceLimits:
    """Measure with the modules of `files`, function → path.  Raises as DeviceLimits.of."""
    hal_device = open_device(device)
    rates, failed = {}, {}
    for name, path in files.items():
        try:
            rates[name] = _rate(hal_device, name, path, matmul_size)
        except IREE_ERRORS as error:
            failed[name] = str(error).splitlines()[0]
    return DeviceLimits.of(rates, failed)


def _rate(device: rt.HalDevice, name: str, path: str, matmul_size: int) -> float:
    """Bytes or floating-point operations a second."""
    call = _function(device, name, path)
    if name.startswith("matmul"):
        matrix = (matmul_size, matmul_size)
        arguments = [_ones(device, matrix, name.endswith("bf16")) for _ in range(2)]
        return 2.0 * matmul_size**3 / _seconds(lambda: call(arguments))
    elements = FIRST_ELEMENTS
    while True:
        shape = (READ_ROWS, elements) if name == "read" else (elements,)
        arguments = [_ones(device, shape, False), _ones(device, (elements,), False)]
        call(arguments)
        start = time.perf_counter()
        call(arguments)
        took = time.perf_counter() - start
        num_bytes = 4 * int(np.prod(shape))
        is_large = name == "fma_f32" or num_bytes >= BEYOND_CACHES_BYTES or took >= TOO_LONG_S
        if (took >= LONG_ENOUGH_S and is_large) or 2 * num_bytes > MOST_BYTES:
            break
        elements *= 2
    return work_of(name, elements) / _seconds(lambda: call(arguments))


def work_of(name: str, elements: int) -> float:
    """Bytes or operations of a call on so many elements."""
    if name == "read":  # each step reads the matrix and a vector, and writes a vector
        return CHAIN * 4.0 * elements * (READ_ROWS + 2)
    if name == "copy":
        return CHAIN * 4.0 * elements * 3
    return float(CHAIN * FMA_FLOPS * elements)


def _function(
    device: rt.HalDevice, name: str, path: str
) -> Callable[[list[rt.HalBufferView]], None]:
    instance = rt.VmInstance()
    module = rt.VmModule.mmap(instance, path)
    context = rt.VmContext(instance, [rt.create_hal_module(instance, device), module])
    function = module.lookup_function(name)

    def call(arguments: list[rt.HalBufferView]) -> None:
        inputs, results = rt.VmVariantList(len(arguments)), rt.VmVariantList(1)
        for argument in arguments:
            inputs.push_ref(argument)
        context.invoke(function, inputs, results)

    return call


def _ones(device: rt.HalDevice, shape: tuple[int, ...], is_bf16: bool) -> rt.HalBufferView:
    """A buffer of ones, of float32 or of bf16."""
    element = rt.HalElementType.BFLOAT_16 if is_bf16 else rt.HalElementType.FLOAT_32
    one = np.full(shape, 0x3F80, np.uint16) if is_bf16 else np.ones(shape, np.float32)
    return device.allocator.allocate_buffer_copy(
        memory_type=rt.MemoryType.DEVICE_LOCAL,
        allowed_usage=rt.BufferUsage.DEFAULT,
        device=device,
        buffer=one,
        element_type=element,
    )


def _seconds(call: Callable[[], None]) -> float:
    """Of a call: the 10th percentile of as many as SECONDS hold, three at least."""
    call()
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.percentile(times, 10))
