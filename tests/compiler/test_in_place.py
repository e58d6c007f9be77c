"""The in-place check, on stream IR that IREE makes from small modules written to break it."""

from __future__ import annotations

import pytest

from llmir.artifact import KvLayout
from llmir.compiler.in_place import check_in_place
from llmir.compiler.iree_compile import cpu_code, to_module, to_stream
from llmir.errors import CompileError, InPlaceError
from llmir.targets import resolve

FLAGS = resolve("cpu:x86-64-v3").flags
KV = KvLayout(
    dtype="f32",
    page_size=16,
    num_kv_heads=2,
    head_dim=16,
    group_windows=(None,),
    group_of_layer=(0,),
)
INDEX = ", ".join(f"%i{n}: tensor<?xi32>" for n in range(8))
KV_TYPE = "tensor<?x16xf32>"  # pages by values: what counts is which argument it is

READ = f"""
module {{
func.func @step({INDEX}, %kv: {KV_TYPE}) -> tensor<?xf32> {{
  %c0 = arith.constant 0 : index
  %zero = arith.constant 0.0 : f32
  %t = tensor.dim %i0, %c0 : tensor<?xi32>
  %e = tensor.empty(%t) : tensor<?xf32>
  %y = linalg.generic {{indexing_maps = [affine_map<(d) -> (d)>, affine_map<(d) -> (d)>],
      iterator_types = ["parallel"]}} ins(%i0 : tensor<?xi32>) outs(%e : tensor<?xf32>) {{
  ^bb0(%p: i32, %o: f32):
    %page = arith.index_cast %p : i32 to index
    %v = tensor.extract %kv[%page, %c0] : {KV_TYPE}
    linalg.yield %v : f32
  }} -> tensor<?xf32>
  return %y : tensor<?xf32>
}}
}}
"""
# The pages are changed and read, but not in the argument's own storage: a transient is needed.
COPY = (
    READ.replace(
        "  %e = tensor",
        f"""  %n = tensor.dim %kv, %c0 : {KV_TYPE}
  %ne = tensor.empty(%n) : {KV_TYPE}
  %new = linalg.generic {{indexing_maps = [affine_map<(a, b) -> (15 - b)>,
      affine_map<(a, b) -> (a, b)>], iterator_types = ["parallel", "parallel"]}}
      ins(%w : tensor<16xf32>) outs(%ne : {KV_TYPE}) {{
  ^bb0(%v: f32, %o: f32):
    %i = linalg.index 0 : index
    %q = tensor.extract %kv[%i, %c0] : {KV_TYPE}
    %s = arith.addf %q, %v : f32
    linalg.yield %s : f32
  }} -> {KV_TYPE}
  %e = tensor""",
    )
    .replace("%kv[%page", "%new[%page")
    .replace(", %kv:", ", %kv:")
    .replace(
        "  %c0 = arith.constant 0 : index\n",
        "  %c0 = arith.constant 0 : index\n  %w = arith.constant dense_resource<w> : tensor<16xf32>\n",
        1,
    )
    .replace("dense_resource<w>", "dense<[" + ", ".join(f"{i}.5" for i in range(16)) + "]>")
)


def test_a_step_that_reads_pages_passes() -> None:
    check_in_place(to_stream(READ, FLAGS), KV, smallest_matrix_bytes=1024)


def test_a_pool_sized_transient_is_refused() -> None:
    with pytest.raises(InPlaceError, match=r"would allocate KV pages: stream.resource.alloca of"):
        check_in_place(to_stream(COPY, FLAGS), KV, smallest_matrix_bytes=1 << 30)


WIDEN = """
module {
util.global private @w = #flow.parameter.named<"model"::"w"> : tensor<256x512xi8>
func.func @step(INDEX, %kv: tensor<?x16xf32>) -> tensor<?x512xf32> {
  %c0 = arith.constant 0 : index
  %zero = arith.constant 0.0 : f32
  %w = util.global.load @w : tensor<256x512xi8>
  %fe = tensor.empty() : tensor<256x512xf32>
  %wide = linalg.generic {indexing_maps = [affine_map<(a, b) -> (a, b)>,
      affine_map<(a, b) -> (a, b)>], iterator_types = ["parallel", "parallel"]}
      ins(%w : tensor<256x512xi8>) outs(%fe : tensor<256x512xf32>) {
  ^bb0(%v: i8, %o: f32):
    %f = arith.sitofp %v : i8 to f32
    linalg.yield %f : f32
  } -> tensor<256x512xf32>
  %held = util.optimization_barrier %wide : tensor<256x512xf32>
  %t = tensor.dim %i0, %c0 : tensor<?xi32>
  %e = tensor.empty(%t) : tensor<?x512xf32>
  %y = linalg.generic {indexing_maps = [affine_map<(d, k) -> (d)>, affine_map<(d, k) -> (d, k)>],
      iterator_types = ["parallel", "parallel"]} ins(%i0 : tensor<?xi32>) outs(%e : tensor<?x512xf32>) {
  ^bb0(%p: i32, %o: f32):
    %row = arith.index_cast %p : i32 to index
    %k = linalg.index 1 : index
    %v = tensor.extract %held[%row, %k] : tensor<256x512xf32>
    linalg.yield %v : f32
  } -> tensor<?x512xf32>
  return %y : tensor<?x512xf32>
}
}
""".replace("INDEX", INDEX)


def test_a_widened_weight_is_refused() -> None:
    """IREE widens it when the module is loaded, which costs the same memory."""
    with pytest.raises(InPlaceError, match="would allocate as much as a weight, whatever"):
        check_in_place(to_stream(WIDEN, FLAGS), KV, smallest_matrix_bytes=256 * 512)


ACTIVATIONS = """
module {
func.func @step(INDEX, %kv: tensor<?x16xf32>) -> tensor<?xi32> {
  %c0 = arith.constant 0 : index
  %t = tensor.dim %i0, %c0 : tensor<?xi32>
  %wide_empty = tensor.empty(%t) : tensor<?x512xi32>
  %wide = linalg.generic {indexing_maps = [affine_map<(t, d) -> (t)>, affine_map<(t, d) -> (t, d)>],
      iterator_types = ["parallel", "parallel"]}
      ins(%i0 : tensor<?xi32>) outs(%wide_empty : tensor<?x512xi32>) {
  ^bb0(%v: i32, %o: i32):
    %d = linalg.index 1 : index
    %d32 = arith.index_cast %d : index to i32
    %x = arith.xori %v, %d32 : i32
    linalg.yield %x : i32
  } -> tensor<?x512xi32>
  %e = tensor.empty(%t) : tensor<?xi32>
  %y = linalg.generic {indexing_maps = [affine_map<(t) -> (t)>, affine_map<(t) -> (t)>],
      iterator_types = ["parallel"]} ins(%i1 : tensor<?xi32>) outs(%e : tensor<?xi32>) {
  ^bb0(%d: i32, %o: i32):
    %t_index = linalg.index 0 : index
    %column = arith.index_cast %d : i32 to index
    %v = tensor.extract %wide[%t_index, %column] : tensor<?x512xi32>
    linalg.yield %v : i32
  } -> tensor<?xi32>
  return %y : tensor<?xi32>
}
}
""".replace("INDEX", INDEX)


def test_activations_may_be_larger_than_a_weight() -> None:
    """As in tiny models, of which one token's activations outweigh a matrix."""
    stream = to_stream(ACTIVATIONS, FLAGS)
    assert "stream.resource.alloca" in stream
    check_in_place(stream, KV, smallest_matrix_bytes=512)


def test_a_failing_compile_says_why(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(CompileError, match=r"failed with exit code \d+:\n.*error: "):
        to_stream("func.func @f() { return %x : i32 }", FLAGS)
    with pytest.raises(CompileError, match="error: "):
        to_module("module { nonsense }", FLAGS, tmp_path / "out.vmfb")


def test_what_a_cpu_module_may_use() -> None:
    code = cpu_code(to_stream(READ, FLAGS))
    assert code.arch == "x86_64"
    assert "avx2" in code.features
    assert "avx512f" not in code.features
