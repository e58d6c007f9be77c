"""The GPU kernels' lowerings of ops on the rows of a matrix.  See plugins/cuda/rows.cu."""

from __future__ import annotations

from llmir.dialect_ext.base import Call, Lowering
from llmir.dialect_ext.c_kernels import Plan
from llmir.dialect_ext.gpu_kernels import GpuKernel, gpu_lowerings
from llmir.dialect_ext.types import TensorType

THREADS = 256
GATES = {"": 0, "silu": 1, "gelu_tanh": 2}  # as in plugins/cuda/numbers.h


def rms_norm_lowerings() -> tuple[Lowering, ...]:
    """Of llm.rms_norm."""
    return gpu_lowerings(_rms_norm_plan)


def gated_mul_lowerings(activation: str) -> tuple[Lowering, ...]:
    """Of llm.silu_mul and llm.gelu_mul."""
    return gpu_lowerings(lambda call: _gated_mul_plan(call, GATES[activation]))


def _rms_norm_plan(call: Call) -> Plan:
    columns = call.type_of("weight").shape[0]
    rows = TensorType((None, columns), "f32")
    kernel = GpuKernel(
        unit="rows",
        function="llmir_rms_norm",
        threads=THREADS,
        reads=("x", "weight"),
        writes=("y",),
        arguments=(columns, float(call.attrs["eps"])),
        grid=("R",),
    )
    return Plan(
        tensors={"x": rows, "weight": call.type_of("weight"), "y": rows},
        dims={"x": ("R",), "y": ("R",)},
        sizes={"R": ("x", 0)},
        kernels=(kernel,),
        results=("y",),
    )


def _gated_mul_plan(call: Call, kind: int) -> Plan:
    """F may be dynamic: so is what the kernel is told of it."""
    rows = TensorType((None, None), "f32")
    kernel = GpuKernel(
        unit="rows",
        function="llmir_gated_mul",
        threads=THREADS,
        reads=("gate", "up"),
        writes=("y",),
        arguments=("F", kind),
        grid=("R",),
    )
    return Plan(
        tensors={"gate": rows, "up": rows, "y": rows},
        dims=dict.fromkeys(("gate", "up", "y"), ("R", "F")),
        sizes={"R": ("gate", 0), "F": ("gate", 1)},
        kernels=(kernel,),
        results=("y",),
    )
