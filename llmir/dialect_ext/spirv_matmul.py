"""The Vulkan kernels' lowerings of llm.quantized_matmul and llm.linear.

One kernel serves every number of tokens, see plugins/vulkan/row_products.glsl: prefill and
decode add in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping

from llmir.dialect_ext.activations import only_float32
from llmir.dialect_ext.base import Call, Lowering
from llmir.dialect_ext.spirv_kernels import (
    SpirvKernel,
    SpirvPlan,
    needs_shader,
    spirv_lowering,
)
from llmir.dialect_ext.types import TensorType, is_static
from llmir.targets import Target

_UNIT_BYTES = 16
_TOKENS = 4  # of a tile, as in row_products.glsl
_ROWS = 8
_WORKGROUP = 64
_FLOAT_BYTES = {"bf16": 2, "f32": 4}


def quantized_matmul_lowering() -> Lowering:
    """Of llm.quantized_matmul."""
    return spirv_lowering(_quantized_plan, _quantized_supports)


def linear_lowering() -> Lowering:
    """Of llm.linear."""
    return spirv_lowering(_linear_plan, _linear_supports)


def _quantized_supports(call: Call, target: Target) -> str | None:
    if reason := needs_shader(target, "quantized_matmul"):
        return reason
    if reason := only_float32(call, target):
        return reason
    x = call.type_of("x")
    if not is_static(x.shape[1]):
        return f"K must be static, got {x}"
    _, groups, group_bytes = call.type_of("quants").shape
    if groups * group_bytes % _UNIT_BYTES:
        return f"rows of {groups * group_bytes} bytes are not whole units of {_UNIT_BYTES}"
    if group_bytes % _UNIT_BYTES and group_bytes != _UNIT_BYTES // 2:
        return f"groups of {group_bytes} bytes are neither whole units of {_UNIT_BYTES} nor half"
    return None


def _linear_supports(call: Call, target: Target) -> str | None:
    if reason := needs_shader(target, "linear"):
        return reason
    if reason := only_float32(call, target):
        return reason
    weight = call.type_of("weight")
    if weight.dtype not in _FLOAT_BYTES:
        return f"weights are {' or '.join(_FLOAT_BYTES)} here, not {weight.dtype}"
    row_bytes = weight.shape[1] * _FLOAT_BYTES[weight.dtype]
    if row_bytes % _UNIT_BYTES:
        return f"rows of {row_bytes} bytes are not whole units of {_UNIT_BYTES}"
    return None


def _quantized_plan(call: Call) -> SpirvPlan:
    rows, groups, group_bytes = call.type_of("quants").shape
    constants = {
        "BITS": int(call.attrs["bits"]),
        "GROUP_SIZE": int(call.attrs["group_size"]),
        "ZERO_POINT": int(call.attrs["zero_point"]),
        "HAS_MINS": int(call.operand("mins") is not None),
    }
    units = groups * group_bytes // _UNIT_BYTES
    operands = ("x", "quants", "scales", "mins", "bias")
    return _plan(call, "quantized_matmul", operands, rows, units, constants)


def _linear_plan(call: Call) -> SpirvPlan:
    weight = call.type_of("weight")
    rows, cols = weight.shape
    element_bytes = _FLOAT_BYTES[weight.dtype]
    units = cols * element_bytes // _UNIT_BYTES
    constants = {"BITS": 8 * element_bytes}
    return _plan(call, "linear", ("x", "weight", "bias"), rows, units, constants)


def _plan(
    call: Call,
    shader: str,
    operands: tuple[str, ...],
    rows: int,
    units: int,
    constants: Mapping[str, int],
) -> SpirvPlan:
    """operands: of the op in the kernel's order; the one before stands for one that is absent."""
    there = {name for name, _ in call.present}
    reads: list[str] = []
    for name in operands:
        reads.append(name if name in there else reads[-1])
    x, y = call.type_of("x"), call.results[0]
    lanes = _lanes(units)
    groups = _WORKGROUP // lanes
    kernel = SpirvKernel(
        shader=shader,
        constants={
            "local_size_x": _WORKGROUP,
            "LANES": lanes,
            "GROUPS": groups,
            "ROWS": _ROWS,
            "N": rows,
            "UNITS": units,
            "K4": int(x.shape[1]) // 4,
            "HAS_BIAS": int(call.operand("bias") is not None),
            **constants,
        },
        reads=tuple(reads),
        writes=("y",),
        push=("T",),
        grid=(str(-(-rows // (groups * _ROWS))), "tiles"),
    )
    return SpirvPlan(
        tensors={
            **dict(call.present),
            "x": TensorType((None, x.shape[1]), "f32"),
            "y": TensorType((None, y.shape[1]), "f32"),
        },
        dims={"x": ("T",), "y": ("T",)},
        sizes={"T": ("x", 0)},
        shapes=f"""  %tile = arith.constant {_TOKENS} : index
  %tiles = arith.ceildivui %T, %tile : index""",
        kernels=(kernel,),
        results=("y",),
    )


def _lanes(units: int) -> int:
    """Invocations that share a row: a function of K and of how a number is stored alone."""
    return 8 if units < 64 else 32
