"""The CPU form of a product with the rows of a weight: y[t, n] = Σ_k x[t, k] · w[n, k].

`llm.linear` and `llm.quantized_matmul` share everything but how a piece of w is
read; this module is what they share.  Standard MLIR only: scf, arith, vector.

Shape legend: T tokens, N rows of the weight, K columns, L lanes of a vector,
(t, n) the size of a register tile.

One dispatch.  A workgroup computes a block of T (up to 64 tokens) × a block of N
(about 32k weights), tile by tile:

    acc[t, n, L] = 0
    for k in 0, L, 2L … K:                     a part of K per lane, in order
        w[n, L] = read and widen               once per tile, in registers only
        acc    += x[t, k : k+L] · w            L lanes of fused multiply-adds
    y[t, n]  = sum of the lanes of acc, pairwise

The tile is the largest of 8×2, 4×4, 2×4 and 1×1 that the block has tokens for; the
last tile of a block is moved back until it ends with the block, and computes a few
rows twice.  Every element of y therefore sees the same operations in the same
order whatever T is and however many threads run: rows are bit-equal in any batch.

Why not linalg.  Measured with N×K = 1536×576, 4-bit groups of 32 with mins, on two
threads of a Zen 4, T = 1 / 8 / 512, as GFLOP/s (2·T·N·K, with the 20 µs of a call):

    all-parallel generic, scf.for in its body         3.3 /   3.6 /   3.7
    one generic, dequantisation in its body           4.1 /   4.5 /   4.6
    dequantised by a producer, then a contraction     4.1 /  33   /  51
    this form                                        33   / 130   / 150–180

All 211 products of SmolLM2-135M in one module: 5.5 ms at T = 1, 15 ms at T = 8,
0.81 s at T = 512.  With a 1×4 tile for one token it was 7.7 to 8.9 ms (four weight rows
read at once defeat the prefetcher), and 8×1, 6×4, 4×4, 8×3, 12×2 were slower at 512.

It needs no flag and allocates nothing but y.  The executable is written out, not left to
be outlined from a `flow.dispatch.workgroups`: 30 equal layers would carry the body 30
times until IREE finds the copies, and those 211 took 11 s to compile in place of 2.3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd

from llmir.dialect_ext.base import Call
from llmir.dialect_ext.types import TensorType

MAX_LANES = 16  # an AVX-512 register of f32; LLVM splits it for narrower ones
TILES = ((8, 2), (4, 4), (2, 4), (1, 1))  # (t, n); at most 16 accumulators of a register
BLOCK_T = 64
BLOCK_WEIGHTS = 32768

_DISPATCH = "!iree_tensor_ext.dispatch.tensor"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """A register tile: `t` tokens × `n` rows of the weight × `lanes` columns."""

    t: int
    n: int
    lanes: int

    @property
    def acc(self) -> str:
        return f"vector<{self.t}x{self.n}x{self.lanes}xf32>"

    def vec(self, dtype: str) -> str:
        """The vector type of a piece of the weight."""
        return f"vector<{self.n}x{self.lanes}x{dtype}>"


def lanes_for(columns: int) -> int | None:
    """How many lanes divide `columns`, None where too few do for vectors to be worth it."""
    lanes = gcd(columns, MAX_LANES)
    return lanes if lanes >= 4 else None


def multiply_add(tile: Tile, x: TensorType, *, w: str, k: str, acc: str, out: str) -> str:
    """MLIR: %out = %acc + x[%t : , %k : ] · %w, for %w of type tile.vec("f32").

    `contract` lets LLVM fuse the two on CPUs that have the instruction.
    """
    return f"""
    %x_{out} = vector.transfer_read %x_t[%t, %{k}], %zero {{in_bounds = [true, true, true],
        permutation_map = affine_map<(t, k) -> (t, 0, k)>}} : {x}, {tile.acc}
    %w_{out} = vector.broadcast %{w} : {tile.vec("f32")} to {tile.acc}
    %p_{out} = arith.mulf %x_{out}, %w_{out} fastmath<contract> : {tile.acc}
    %{out} = arith.addf %{acc}, %p_{out} fastmath<contract> : {tile.acc}
"""


def emit_rows(
    call: Call, symbol: str, *, lanes: int, constants: str, sum_over_k: Callable[[Tile], str]
) -> str:
    """A function that computes y f32[T, N] from x f32[T, K], weight operands and bias?.

    Args:
        lanes:       L, a divisor of what `sum_over_k` steps by
        constants:   MLIR that `sum_over_k` needs, put at the top of the dispatch
        sum_over_k:  MLIR that defines %acc of type tile.acc from the tensors %<operand>_t,
                     the tile's first token %t and row %n, %init (zeros), %zero, %c0, %c1
    """
    x = TensorType((None, call.type_of("x").shape[1]), "f32")
    y = TensorType((None, call.results[0].shape[1]), "f32")
    rows, columns = y.shape[1], x.shape[1]
    block_n = max(4, min(64, BLOCK_WEIGHTS // columns // 4 * 4))
    static = [(name, t) for name, t in call.present if name != "x"]
    args = "".join(f", %{name}" for name, _ in static)
    types = "".join(f", {t}" for _, t in static)
    bindings = "".join(f", %{name}_in: {_DISPATCH}<readonly:{t}>" for name, t in static)
    loads = "\n".join(_load(name, t) for name, t in static)
    tiles = [Tile(t=t, n=gcd(n, rows), lanes=lanes) for t, n in TILES]
    return f"""
flow.executable private @{symbol}_exe {{
  flow.executable.export public @{symbol}_rows workgroups(%size: index)
      -> (index, index, index) {{
    %blocks_n = arith.constant {-(-rows // block_n)} : index
    %block_t = arith.constant {BLOCK_T} : index
    %blocks_t = arith.ceildivui %size, %block_t : index
    %one = arith.constant 1 : index
    flow.return %blocks_n, %blocks_t, %one : index, index, index
  }}
  builtin.module {{
    func.func @{symbol}_rows(%size_in: index, %x_in: {_DISPATCH}<readonly:{x}>{bindings},
        %y_in: {_DISPATCH}<writeonly:{y}>) {{
      %c0 = arith.constant 0 : index
      %c1 = arith.constant 1 : index
      %zero = arith.constant 0.0 : f32
      %rows = arith.constant {rows} : index
      %block_t = arith.constant {BLOCK_T} : index
      %block_n = arith.constant {block_n} : index
{constants}
      %size = iree_tensor_ext.dispatch.workload.ordinal %size_in, 0 : index
      %x_out = flow.dispatch.tie_shape %x_in : {_DISPATCH}<readonly:{x}>{{%size}}
      %y_out = flow.dispatch.tie_shape %y_in : {_DISPATCH}<writeonly:{y}>{{%size}}
      %x_t = iree_tensor_ext.dispatch.tensor.load %x_out, offsets = [0, 0],
          sizes = [%size, {columns}], strides = [1, 1] : {_DISPATCH}<readonly:{x}>{{%size}} -> {x}
      %y_t = iree_tensor_ext.dispatch.tensor.load %y_out, offsets = [0, 0],
          sizes = [%size, {rows}], strides = [1, 1] : {_DISPATCH}<writeonly:{y}>{{%size}} -> {y}
{loads}
      // This workgroup's rows, and its tokens: an even share, so that no block is tiny.
      %id_n = flow.dispatch.workgroup.id[0] : index
      %first_n = arith.muli %id_n, %block_n : index
      %next_n = arith.addi %first_n, %block_n : index
      %end_n = arith.minui %next_n, %rows : index
      %id_t = flow.dispatch.workgroup.id[1] : index
      %blocks_t = arith.ceildivui %size, %block_t : index
      %share_t = arith.muli %id_t, %size : index
      %first_t = arith.divui %share_t, %blocks_t : index
      %next_id_t = arith.addi %id_t, %c1 : index
      %next_share_t = arith.muli %next_id_t, %size : index
      %end_t = arith.divui %next_share_t, %blocks_t : index
      %count_t = arith.subi %end_t, %first_t : index
{_tiles(call, y, tiles, sum_over_k)}
      iree_tensor_ext.dispatch.tensor.store %y_{tiles[0].t}, %y_out, offsets = [0, 0],
          sizes = [%size, {rows}], strides = [1, 1] : {y} -> {_DISPATCH}<writeonly:{y}>{{%size}}
      return
    }}
  }}
}}
{call.signature(symbol)} {{
  %c0 = arith.constant 0 : index
  %x_any = tensor.cast %x : {call.type_of("x")} to {x}
  %size = tensor.dim %x_any, %c0 : {x}
  %y_any = flow.dispatch @{symbol}_exe::@{symbol}_rows[%size](%size, %x_any{args})
      : (index, {x}{{%size}}{types}) -> {y}{{%size}}
  %y = tensor.cast %y_any : {y} to {call.results[0]}
  return %y : {call.results[0]}
}}
"""


def _load(name: str, t: TensorType) -> str:
    zeros, ones = ", ".join("0" * t.rank), ", ".join("1" * t.rank)
    sizes = ", ".join(map(str, t.shape))
    return f"""
    %{name}_t = iree_tensor_ext.dispatch.tensor.load %{name}_in, offsets = [{zeros}],
        sizes = [{sizes}], strides = [{ones}] : {_DISPATCH}<readonly:{t}> -> {t}"""


def _tiles(call: Call, y: TensorType, tiles: list[Tile], body: Callable[[Tile], str]) -> str:
    """%y_<t>: y with this block computed, by the first tile that the block has tokens for."""
    tile, *smaller = tiles
    loops = f"""
    %step_t = arith.constant {tile.t} : index
    %step_n = arith.constant {tile.n} : index
    %last_t = arith.subi %end_t, %step_t : index
    %init = arith.constant dense<0.0> : {tile.acc}
    %y_block = scf.for %tile_t = %first_t to %end_t step %step_t iter_args(%y_0 = %y_t) -> ({y}) {{
      %t = arith.minui %tile_t, %last_t : index
      %y_rows = scf.for %n = %first_n to %end_n step %step_n iter_args(%y_1 = %y_0) -> ({y}) {{
{body(tile)}
{_sum_lanes(tile)}
{_add_bias(call, tile)}
        %y_2 = vector.transfer_write %total, %y_1[%t, %n] {{in_bounds = [true, true]}}
            : vector<{tile.t}x{tile.n}xf32>, {y}
        scf.yield %y_2 : {y}
      }}
      scf.yield %y_rows : {y}
    }}
"""
    if not smaller:
        return loops.replace("%y_block", f"%y_{tile.t}")
    return f"""
    %min_{tile.t} = arith.constant {tile.t} : index
    %fits_{tile.t} = arith.cmpi uge, %count_t, %min_{tile.t} : index
    %y_{tile.t} = scf.if %fits_{tile.t} -> ({y}) {{
{loops}
      scf.yield %y_block : {y}
    }} else {{
{_tiles(call, y, smaller, body)}
      scf.yield %y_{smaller[0].t} : {y}
    }}
"""


def _sum_lanes(tile: Tile) -> str:
    """%sum [t, n] of %acc [t, n, L]: halves added until one lane is left."""
    lines, name, lanes = [], "acc", tile.lanes
    while lanes > 1:
        half = lanes // 2
        wide = f"vector<{tile.t}x{tile.n}x{lanes}xf32>"
        narrow = f"vector<{tile.t}x{tile.n}x{half}xf32>"
        for side, offset in (("low", 0), ("high", half)):
            lines.append(
                f"%{side}_{half} = vector.extract_strided_slice %{name} "
                f"offsets = [0, 0, {offset}], sizes = [{tile.t}, {tile.n}, {half}], "
                f"strides = [1, 1, 1] : {wide} to {narrow}"
            )
        lines.append(f"%sum_{half} = arith.addf %low_{half}, %high_{half} : {narrow}")
        name, lanes = f"sum_{half}", half
    one = f"vector<{tile.t}x{tile.n}x1xf32>"
    lines.append(f"%sum = vector.shape_cast %{name} : {one} to vector<{tile.t}x{tile.n}xf32>")
    return "\n".join(f"        {line}" for line in lines)


def _add_bias(call: Call, tile: Tile) -> str:
    """%total = %sum + bias[n]; the same values where there is no bias."""
    bias, vec = call.operand("bias"), f"vector<{tile.t}x{tile.n}xf32>"
    if bias is None:
        return f"        %total = vector.shape_cast %sum : {vec} to {vec}"
    return f"""
        %bias_v = vector.transfer_read %bias_t[%n], %zero {{in_bounds = [true, true],
            permutation_map = affine_map<(n) -> (0, n)>}} : {bias}, {vec}
        %total = arith.addf %sum, %bias_v : {vec}"""
