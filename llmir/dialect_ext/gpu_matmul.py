"""The GPU kernels' lowerings of packed matmuls and tables.  See plugins/cuda/matmul.cu.

Shape legend: T tokens, N output features, K input features, P pieces of an activation.
"""

from __future__ import annotations

from llmir.dialect_ext.activations import allowed
from llmir.dialect_ext.base import Call, Lowering
from llmir.dialect_ext.c_kernels import Plan
from llmir.dialect_ext.gpu_kernels import CUDA, GpuKernel, gpu_lowerings
from llmir.dialect_ext.gpu_rows import GATES, THREADS
from llmir.dialect_ext.types import TensorType
from llmir.formats import packed
from llmir.targets import Target

PIECES = {"bf16": 1, "f32": 3}
"""Pieces of an activation, of each precision that the kernels compute with, the fastest first."""

_HAS_BIAS, _HAS_RESIDUAL = 1, 2
# Of the kernels of plugins/cuda/matmul.cu.
_ONE_TOKENS, _SOME_TOKENS, _SOME_MOST = 8, 32, 64
_MANY_TOKENS = {1: 128, 3: 64}
_MANY_TILES = 8


def unit_of(format_name: str) -> str | None:
    """What the kernels call a packed format, None if there are none for it."""
    name = format_name
    if name.startswith("int4_g"):
        name = "int4_zp" if name.endswith("_zp") else "int4"
    return name if name in ("q4_0", "q4_1", "q8_0", "int8", "int4", "int4_zp", "bf16") else None


def gpu_activations_of(format_name: str) -> tuple[str, ...]:
    """The precisions that the kernels of a format compute with, the fastest first."""
    return () if unit_of(format_name) is None else tuple(PIECES)


def matmul_lowerings() -> tuple[Lowering, ...]:
    """Of llm.packed_matmul."""
    return gpu_lowerings(_matmul_plan, _supports, providers=(CUDA,))


def argmax_lowerings() -> tuple[Lowering, ...]:
    """Of llm.packed_argmax."""
    return gpu_lowerings(_argmax_plan, _supports, providers=(CUDA,))


def embedding_lowerings() -> tuple[Lowering, ...]:
    """Of llm.packed_embedding."""
    return gpu_lowerings(_embedding_plan, _format_supports, providers=(CUDA,))


def _format_supports(call: Call, target: Target) -> str | None:
    name = str(call.attrs["format"])
    return None if unit_of(name) else f"no GPU kernels for {name}"


def _supports(call: Call, target: Target) -> str | None:
    if reason := _format_supports(call, target):
        return reason
    found = str(call.attrs["activations"])
    if not set(PIECES) & set(allowed(found)):
        return f"activations are {' or '.join(PIECES)} here, not {found}"
    return None


def _section(format_name: str, cols: int) -> int:
    """Blocks that share a header."""
    return (packed.FORMATS[format_name].section or cols) // packed.BLOCK


def _matmul_plan(call: Call) -> Plan:
    return _matmul(call, "y")


def _argmax_plan(call: Call) -> Plan:
    """The logits, and then a workgroup for each row of them."""
    matmul = _matmul(call, "logits")
    best = GpuKernel(
        unit="rows",
        function="llmir_argmax",
        threads=THREADS,
        reads=("logits",),
        writes=("ids",),
        arguments=(int(call.attrs["rows"]),),
        grid=("T",),
    )
    return Plan(
        tensors={**matmul.tensors, "ids": TensorType((None,), "i32")},
        dims={**matmul.dims, "ids": ("T",)},
        sizes=matmul.sizes,
        shapes=matmul.shapes,
        kernels=(*matmul.kernels, best),
        results=("ids",),
    )


def _embedding_plan(call: Call) -> Plan:
    cols, name = int(call.attrs["cols"]), str(call.attrs["format"])
    kernel = GpuKernel(
        unit=f"embedding_{unit_of(name)}",
        function="llmir_embedding",
        threads=THREADS,
        reads=("ids", "table"),
        writes=("y",),
        arguments=(cols, _section(name, cols)),
        grid=("T",),
    )
    return Plan(
        tensors={
            "ids": TensorType((None,), "i32"),
            "table": call.type_of("table"),
            "y": TensorType((None, cols), "f32"),
        },
        dims={"ids": ("T",), "y": ("T",)},
        sizes={"T": ("ids", 0)},
        kernels=(kernel,),
        results=("y",),
    )


def _matmul(call: Call, result: str) -> Plan:
    """Round the activations; then of three kernels the one for so many tokens.

    The other two have grids of zeros.  All give the same bits.
    """
    rows, cols = int(call.attrs["rows"]), call.type_of("x").shape[1]
    name, given = str(call.attrs["format"]), dict(call.present)
    pieces = PIECES[str(call.attrs["activations"])]
    gate = GATES[str(call.attrs.get("gated", ""))]
    unit = f"matmul_{unit_of(name)}_{pieces}"
    y = TensorType((None, rows), "f32")
    rounding = GpuKernel(
        unit=unit,
        function="llmir_round",
        threads=THREADS,
        reads=("x", "norm" if "norm" in given else "x"),
        writes=("acts",),
        arguments=("T", cols, pieces, int("norm" in given), float(call.attrs["eps"])),
        grid=("padded_tokens",),
    )
    has_bias, has_residual = "bias" in given, "residual" in given
    flags = _HAS_BIAS * has_bias + _HAS_RESIDUAL * has_residual

    def kernel(function: str, grid: tuple[str, ...], *, first: bool = False) -> GpuKernel:
        reads = (
            "acts",
            "weight",
            "bias" if has_bias else "weight",
            "residual" if has_residual else "weight",
        )
        return GpuKernel(
            unit=unit,
            function=function,
            threads=THREADS,
            reads=reads if first else (*reads, result),
            writes=(result,) if first else (),
            tied="" if first else result,
            arguments=("T", cols, rows, _section(name, cols), flags, gate),
            grid=grid,
        )

    one = "llmir_matmul_one_gated" if gate else "llmir_matmul_one"
    loose = {"x": TensorType((None, cols), "f32"), "residual": y}
    return Plan(
        tensors={
            **{n: loose.get(n, t) for n, t in given.items()},
            "acts": TensorType((None,), "i8"),
            result: y,
        },
        dims={**dict.fromkeys(("x", "residual", result), ("T",)), "acts": ("acts_bytes",)},
        sizes={"T": ("x", 0)},
        shapes=_sizes(rows, cols, pieces, bool(gate)),
        kernels=(
            rounding,
            kernel(one, ("one_x", "is_one", "is_one"), first=True),
            kernel("llmir_matmul_some", ("some_x", "some_y", "is_some")),
            kernel("llmir_matmul_many", ("many_x", "many_y", "is_many")),
        ),
        results=(result,),
    )


def _sizes(rows: int, cols: int, pieces: int, is_gated: bool) -> str:
    """MLIR: the kernels' grids, of which one is not of zeros, and %acts_bytes."""
    tiles = -(-rows // packed.TILE_ROWS)
    one_tiles = tiles  # gated ones in pairs
    all_tiles = 2 * tiles if is_gated else tiles
    return f"""    %none = arith.constant 0 : index
    %one = arith.constant 1 : index
    %one_tiles = arith.constant {one_tiles} : index
    %some_tiles = arith.constant {-(-all_tiles // 2)} : index
    %many_tiles = arith.constant {-(-all_tiles // _MANY_TILES)} : index
    %one_tokens = arith.constant {_ONE_TOKENS} : index
    %some_tokens = arith.constant {_SOME_TOKENS} : index
    %some_most = arith.constant {_SOME_MOST} : index
    %many_tokens = arith.constant {_MANY_TOKENS[pieces]} : index
    %fits_one = arith.cmpi ule, %T, %one_tokens : index
    %is_one = arith.select %fits_one, %one, %none : index
    %is_more = arith.subi %one, %is_one : index
    %fits_some = arith.cmpi ule, %T, %some_most : index
    %is_few = arith.select %fits_some, %one, %none : index
    %is_some = arith.muli %is_few, %is_more : index
    %is_many = arith.subi %one, %is_few : index
    %one_x = arith.muli %one_tiles, %is_one : index
    %some_x = arith.muli %some_tiles, %is_some : index
    %some_groups = arith.ceildivui %T, %some_tokens : index
    %some_y = arith.muli %some_groups, %is_some : index
    %many_groups = arith.ceildivui %T, %many_tokens : index
    %many_x = arith.muli %many_groups, %is_many : index
    %many_y = arith.muli %many_tiles, %is_many : index
    %tokens_in_eights = arith.ceildivui %T, %one_tokens : index
    %padded_tokens = arith.muli %tokens_in_eights, %one_tokens : index
    %row_bytes = arith.constant {2 * pieces * cols} : index
    %sums_bytes = arith.constant {4 * (cols // packed.BLOCK)} : index
    %all_row_bytes = arith.muli %T, %row_bytes : index
    %all_sums_bytes = arith.muli %padded_tokens, %sums_bytes : index
    %acts_bytes = arith.addi %all_row_bytes, %all_sums_bytes : index"""
