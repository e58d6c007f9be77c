"""What the C kernels of packed matmuls and tables are called with.  See plugins/cpu/matmul.c.

Shape legend: T tokens, N output features, K input features, W workers.
"""

from __future__ import annotations

from llmir.dialect_ext.base import Call
from llmir.dialect_ext.c_kernels import Argument, CKernel, Count, Id, Plan, shares
from llmir.dialect_ext.types import TensorType
from llmir.formats import packed

# As in plugins/cpu/matmul.c.
CHUNK = 128  # tokens of a workgroup, at most
_FEW_TOKENS = 4  # that each workgroup rounds itself
_SOME_TOKENS = 16  # that may be rounded twice by each worker
_TILES_OF_TWO = 16  # of a worker that gets two workgroups
_ROUNDED_TOKENS = 8  # of a workgroup that rounds
_SCRATCH_ROWS = 16
_PANEL_BYTES = 38  # for each column of a tile
_FLOAT_PIECE_BYTES = 16 * (32 + 3) * 16 * 4
_HAS_NORM, _HAS_BIAS, _HAS_RESIDUAL, _BEST = 1, 2, 4, 16
_TOP_SHIFT = 8
_GATED = {"": 0, "silu": 8, "gelu_tanh": 32}
PLANES = {"int8": 1, "int8_16": 2, "int12": 2, "int16": 2}
"""Bytes of an activation, of each precision of integers."""


def matmul_plan(call: Call) -> Plan:
    """Of llm.packed_matmul."""
    y = TensorType((None, int(call.attrs["rows"])), "f32")
    return _matmul(call, y, ("T",), _GATED[str(call.attrs["gated"])])


def argmax_plan(call: Call) -> Plan:
    """Of llm.packed_argmax: the best of each share of the rows, then the best of those."""
    parts, ids = TensorType((None, None, 2), "f32"), TensorType((None,), "i32")
    matmul = _matmul(call, parts, ("count_n", "T"), _BEST)
    best = CKernel(
        function="llmir_best",
        reads=("y",),
        writes=("ids",),
        arguments=("y", "ids", "T", "count_n", Id(0), Count(0)),
        grid=("1",),
    )
    return Plan(
        tensors={**matmul.tensors, "ids": ids},
        dims={**matmul.dims, "ids": ("T",)},
        sizes=matmul.sizes,
        shapes=matmul.shapes,
        kernels=(*matmul.kernels, best),
        results=("ids",),
    )


def top_plan(call: Call) -> Plan:
    """Of llm.packed_topk: the best of each share of the rows, then the best of those."""
    k = int(call.attrs["k"])
    parts = TensorType((None,), "f32")
    lists, weights = TensorType((None, k), "f32"), TensorType((None,), "f32")
    matmul = _matmul(call, parts, ("parts",), k << _TOP_SHIFT)
    top = CKernel(
        function="llmir_top",
        reads=("y",),
        writes=("values", "ids", "weights"),
        arguments=("y", "values", "ids", "weights", "T", "count_n", "units", k, Id(0), Count(0)),
        grid=("T",),
    )
    return Plan(
        tensors={
            **matmul.tensors,
            "values": lists,
            "ids": TensorType(lists.shape, "i32"),
            "weights": weights,
        },
        dims={**matmul.dims, **dict.fromkeys(top.writes, ("T",))},
        sizes=matmul.sizes,
        shapes=f"""{matmul.shapes}
    %list = arith.constant {k} : index
    %lists = arith.muli %count_n, %list : index
    %pairs_of_token = arith.addi %lists, %units : index
    %of_token = arith.muli %pairs_of_token, %two : index
    %parts = arith.muli %of_token, %T : index""",
        kernels=(*matmul.kernels, top),
        results=top.writes,
    )


def embedding_plan(call: Call) -> Plan:
    """Of llm.packed_embedding.  See plugins/cpu/rows.c."""
    cols = int(call.attrs["cols"])
    kernel = CKernel(
        function=f"llmir_rows_{call.attrs['format']}",
        reads=("ids", "table"),
        writes=("y",),
        arguments=("ids", "table", "y", "T", cols, Id(0), Count(0)),
        grid=("shares",),
    )
    return Plan(
        tensors={
            "ids": TensorType((None,), "i32"),
            "table": call.type_of("table"),
            "y": TensorType((None, cols), "f32"),
        },
        dims={"ids": ("T",), "y": ("T",)},
        sizes={"T": ("ids", 0)},
        shapes=shares("T", 16),
        kernels=(kernel,),
        results=("y",),
    )


def _matmul(call: Call, y: TensorType, y_dims: tuple[str, ...], extra_flags: int) -> Plan:
    rows, cols = int(call.attrs["rows"]), call.type_of("x").shape[1]
    activations = str(call.attrs["activations"])
    given = dict(call.present)
    bits = (("norm", _HAS_NORM), ("bias", _HAS_BIAS), ("residual", _HAS_RESIDUAL))
    flags = extra_flags + sum(bit for name, bit in bits if name in given)
    suffix = f"{call.attrs['format']}_{activations}"
    eps = float(call.attrs["eps"])
    optional: dict[str, Argument] = {n: n if n in given else "x" for n, _ in bits}
    # T is dynamic for the kernel, also where it is static here.
    loose = {"x": TensorType((None, cols), "f32"), "residual": TensorType((None, rows), "f32")}
    rounding = CKernel(
        function=f"llmir_round_{suffix}",
        reads=tuple(name for name in ("x", "norm") if name in given),
        writes=("acts",),
        arguments=(
            *("x", optional["norm"], "acts", "T", cols, flags, "prepared", eps),
            *(Id(0), Count(0)),
        ),
        grid=("count_rounding",),
    )
    kernel = CKernel(
        function=f"llmir_matmul_{suffix}",
        reads=(*given, "acts"),
        writes=("y", "scratch"),
        arguments=(
            "x",
            optional["norm"],
            "acts",
            "weight",
            optional["bias"],
            optional["residual"],
            "y",
            "scratch",
            "T",
            cols,
            rows,
            flags,
            "prepared",
            eps,
            Id(0),
            Count(0),
            Id(1),
            Count(1),
        ),
        grid=("count_n", "count_m"),
        streams="weight",
    )
    return Plan(
        tensors={
            **{name: loose.get(name, t) for name, t in given.items()},
            "acts": TensorType((None,), "i8"),
            "y": y,
            "scratch": TensorType((None,), "i8"),
        },
        dims={
            "x": ("T",),
            "residual": ("T",),
            "acts": ("rounded_bytes",),
            "y": y_dims,
            "scratch": ("bytes",),
        },
        sizes={"T": ("x", 0)},
        shapes=_grid(rows) + "\n" + _scratch_bytes(cols, activations),
        kernels=(rounding, kernel),
        results=("y",),
    )


def row_bytes(cols: int, activations: str) -> int:
    """Bytes of a row of activations in scratch memory, at most: see plugins/cpu/activations.h."""
    blocks = cols // packed.BLOCK
    used = 2 * cols + 16 * blocks if activations in PLANES else 4 * cols + 4 * blocks
    lines = -(-used // 64)
    if activations == "int8_16":
        lines += -(-(cols + 4 * blocks + 4 * -(-blocks // 32)) // 64)
    return (lines | 1) * 64


def _scratch_bytes(cols: int, activations: str) -> str:
    """MLIR: %rounded_bytes of rounded activations, and %bytes of scratch memory: chunk_bytes of
    matmul.c for each workgroup."""
    of_row, per_row, beside = row_bytes(cols, activations), 0, _FLOAT_PIECE_BYTES
    if activations in PLANES:
        per_row = cols // packed.BLOCK * (PLANES[activations] * packed.BLOCK + 8)
        beside = 2 * _PANEL_BYTES * cols
    return f"""    %row_bytes = arith.constant {of_row} : index
    %other_row_bytes = arith.constant {per_row} : index
    %unpacked_bytes = arith.constant {beside} : index
    %most_rows = arith.constant {CHUNK} : index
    %whole_rows = arith.constant {_SCRATCH_ROWS} : index
    %rows_and_more = arith.addi %T, %whole_rows : index
    %prepared_rows = arith.select %is_prepared, %rows_and_more, %one : index
    %rounded_bytes = arith.muli %prepared_rows, %row_bytes : index
    %some_rows = arith.minui %T, %most_rows : index
    %sixteens = arith.ceildivui %some_rows, %whole_rows : index
    %chunk_rows = arith.muli %sixteens, %whole_rows : index
    %own_row_bytes = arith.select %is_prepared, %none, %row_bytes : index
    %all_row_bytes = arith.addi %own_row_bytes, %other_row_bytes : index
    %rows_bytes = arith.muli %chunk_rows, %all_row_bytes : index
    %chunk_bytes = arith.addi %rows_bytes, %unpacked_bytes : index
    %workgroups = arith.muli %count_n, %count_m : index
    %bytes = arith.muli %workgroups, %chunk_bytes : index"""


def _grid(rows: int) -> str:
    """MLIR: %count_n shares of the rows × %count_m chunks of the %T tokens, for %W workers.

    As few shares as give every worker as many workgroups; two for each worker where there is one
    chunk, and tiles enough for shares that are about the same. A matrix that has fewer tiles than
    workers gets more chunks, where there are tokens for them.

    %prepared: 1 where more than two workgroups would round the same tokens. %count_rounding
    workgroups do it then; few tokens take less time than the others' waiting for it.
    """
    units = -(-rows // packed.TILE_ROWS)
    return f"""    %none = arith.constant 0 : index
    %one = arith.constant 1 : index
    %two = arith.constant 2 : index
    %units = arith.constant {units} : index
    %chunk_tokens = arith.constant {CHUNK} : index
    %least_tokens = arith.constant {_SCRATCH_ROWS} : index
    %chunks = arith.ceildivui %T, %chunk_tokens : index
    %most_chunks = arith.ceildivui %T, %least_tokens : index
    %chunks_for_all = arith.ceildivui %W, %units : index
    %more_chunks = arith.minui %most_chunks, %chunks_for_all : index
    %some_chunks = arith.maxui %chunks, %more_chunks : index
    %count_m = arith.maxui %some_chunks, %one : index
    %left_of_one = arith.remui %count_m, %W : index
    %one_is_even = arith.cmpi eq, %left_of_one, %none : index
    %two_chunks = arith.muli %count_m, %two : index
    %left_of_two = arith.remui %two_chunks, %W : index
    %two_are_even = arith.cmpi eq, %left_of_two, %none : index
    %two_or_more = arith.select %two_are_even, %two, %W : index
    %even = arith.select %one_is_even, %one, %two_or_more : index
    %few_tokens = arith.constant {_FEW_TOKENS} : index
    %is_more = arith.cmpi ugt, %T, %few_tokens : index
    %is_repeated = arith.cmpi ugt, %even, %two : index
    %is_prepared = arith.andi %is_more, %is_repeated : i1
    %prepared = arith.select %is_prepared, %one, %none : index
    %rounded_at_once = arith.constant {_ROUNDED_TOKENS} : index
    %roundings = arith.ceildivui %T, %rounded_at_once : index
    %count_rounding = arith.select %is_prepared, %roundings, %one : index
    %some_tokens = arith.constant {_SOME_TOKENS} : index
    %is_some = arith.cmpi ule, %T, %some_tokens : index
    %is_cheap = arith.ori %is_some, %is_prepared : i1
    %tiles_of_two = arith.constant {_TILES_OF_TWO} : index
    %tiles_for_two = arith.muli %W, %tiles_of_two : index
    %is_large = arith.cmpi uge, %units, %tiles_for_two : index
    %is_one = arith.cmpi eq, %count_m, %one : index
    %is_split = arith.andi %is_large, %is_one : i1
    %is_twice = arith.andi %is_split, %is_cheap : i1
    %twice = arith.muli %W, %two : index
    %wanted = arith.select %is_twice, %twice, %even : index
    %count_n = arith.minui %wanted, %units : index"""
