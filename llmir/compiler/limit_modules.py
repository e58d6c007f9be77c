"""Modules that measure what a device can do at most: bench/devices/limits.py runs them.

    read         y[p] = a[p] + Σ_j x[j, p]                  CHAIN times, J = 64: reads x
    copy         y[p] = x[p] + a[p]                         CHAIN times: reads and writes
    fma_f32      8 chains of multiply-adds on registers, 256 long, for each p
    matmul_f32   n × n × n
    matmul_bf16  n × n × n, of bf16 into float32: not on Vulkan and Metal

All but the matmuls are all-parallel generics, which every target compiles.  Sizes are dynamic,
but for the matmuls', whose code is better if it knows them.  A function is a module of its own,
as a target may compile one and not another.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llmir.compiler import iree_compile
from llmir.errors import CompileError

CHAIN = 8
READ_ROWS = 64
FMA_CHAINS, FMA_LENGTH = 8, 256
MATMUL_SIZES = {"cuda": 4096, "rocm": 4096}
DEFAULT_MATMUL_SIZE = 512


def matmul_size(kind: str) -> int:
    """n, for a kind of target."""
    return MATMUL_SIZES.get(kind, DEFAULT_MATMUL_SIZE)


def compile_limits(
    kind: str, flags: Sequence[str], directory: Path
) -> tuple[dict[str, str], dict[str, str]]:
    """Compile the modules for a kind of target.  Returns function → path, function → error."""
    texts = {"read": _read(), "copy": _copy(), "fma_f32": _fma()}
    texts["matmul_f32"] = _matmul("f32", matmul_size(kind))
    if kind in ("cuda", "rocm"):
        texts["matmul_bf16"] = _matmul("bf16", matmul_size(kind))
    files, errors = {}, {}
    for name, text in texts.items():
        path = directory / f"{name}.vmfb"
        try:
            iree_compile.to_module(iree_compile.to_stream(text, flags), flags, path)
            files[name] = str(path)
        except CompileError as error:
            errors[name] = str(error)
    return files, errors


def _chain(name: str, x: str, body: str) -> str:
    """y = a; CHAIN times y = op(x, y), a dispatch each."""
    vector = "tensor<?xf32>"
    steps = "\n".join(
        f"  %y{i + 1} = func.call @op(%x, %y{i}) : ({x}, {vector}) -> {vector}"
        for i in range(CHAIN)
    )
    return f"""
func.func private @op(%x: {x}, %a: {vector}) -> {vector} {{
  %c0 = arith.constant 0 : index
  %n = tensor.dim %a, %c0 : {vector}
  %empty = tensor.empty(%n) : {vector}
  %y = linalg.generic {{
      indexing_maps = [affine_map<(p) -> (p)>, affine_map<(p) -> (p)>],
      iterator_types = ["parallel"]
  }} ins(%a : {vector}) outs(%empty : {vector}) {{
  ^bb0(%start: f32, %o: f32):
    %p = linalg.index 0 : index
{body}
    linalg.yield %r : f32
  }} -> {vector}
  return %y : {vector}
}}
func.func @{name}(%x: {x}, %y0: {vector}) -> {vector} {{
{steps}
  return %y{CHAIN} : {vector}
}}
"""


def _read() -> str:
    x = f"tensor<{READ_ROWS}x?xf32>"
    return _chain(
        "read",
        x,
        f"""
    %first = arith.constant 0 : index
    %one = arith.constant 1 : index
    %rows = arith.constant {READ_ROWS} : index
    %r = scf.for %j = %first to %rows step %one iter_args(%acc = %start) -> (f32) {{
      %v = tensor.extract %x[%j, %p] : {x}
      %next = arith.addf %acc, %v : f32
      scf.yield %next : f32
    }}""",
    )


def _copy() -> str:
    """Each step reads x and what the one before wrote, and writes as much."""
    body = """
    %v = tensor.extract %x[%p] : tensor<?xf32>
    %r = arith.addf %v, %start : f32"""
    return _chain("copy", "tensor<?xf32>", body)


def _fma() -> str:
    names = [f"%a{i}" for i in range(FMA_CHAINS)]
    starts = [f"%a{i} = %s{i}" for i in range(FMA_CHAINS)]
    begin = "\n".join(
        f"    %k{i} = arith.constant {i}.0 : f32\n    %s{i} = arith.addf %start, %k{i} : f32"
        for i in range(FMA_CHAINS)
    )
    steps = "\n".join(f"      %b{i} = math.fma {a}, %v, %start : f32" for i, a in enumerate(names))
    types = ", ".join(["f32"] * FMA_CHAINS)
    nexts = ", ".join(f"%b{i}" for i in range(FMA_CHAINS))
    sums = "\n".join(
        f"    %t{i} = arith.addf %{'t' + str(i - 1) if i > 1 else 'e#0'}, %e#{i} : f32"
        for i in range(1, FMA_CHAINS)
    )
    return _chain(
        "fma_f32",
        "tensor<?xf32>",
        f"""
    %v = tensor.extract %x[%p] : tensor<?xf32>
    %first = arith.constant 0 : index
    %one = arith.constant 1 : index
    %length = arith.constant {FMA_LENGTH} : index
{begin}
    %e:{FMA_CHAINS} = scf.for %j = %first to %length step %one
        iter_args({", ".join(starts)}) -> ({types}) {{
{steps}
      scf.yield {nexts} : {types}
    }}
{sums}
    %zero = arith.constant 0.0 : f32
    %r = arith.addf %t{FMA_CHAINS - 1}, %zero : f32""",
    )


def _matmul(dtype: str, n: int) -> str:
    a, y = f"tensor<{n}x{n}x{dtype}>", f"tensor<{n}x{n}xf32>"
    return f"""
func.func @matmul_{dtype}(%a: {a}, %b: {a}) -> {y} {{
  %zero = arith.constant 0.0 : f32
  %empty = tensor.empty() : {y}
  %init = linalg.fill ins(%zero : f32) outs(%empty : {y}) -> {y}
  %y = linalg.matmul ins(%a, %b : {a}, {a}) outs(%init : {y}) -> {y}
  return %y : {y}
}}
"""
