// PASSES: select-providers{target=cpu:x86-64-v3}

// All ops on pages get the kernels, which order the elements of a page in their own way.
// CHECK-LABEL: func.func @pages
// CHECK: "llm.append_kv"({{.*}}llm.provider = "cpu_c"
// CHECK: "llm.paged_attention"({{.*}}llm.provider = "cpu_c"
func.func @pages(%q: tensor<?x1x32xf32>, %kv: tensor<?x2x1x16x32xf16>, %slots: tensor<?xi32>, %table: tensor<?x?xi32>, %start: tensor<?xi32>) -> tensor<?x1x32xf32> {
  %new = "llm.append_kv"(%kv, %q, %q, %slots) : (tensor<?x2x1x16x32xf16>, tensor<?x1x32xf32>, tensor<?x1x32xf32>, tensor<?xi32>) -> tensor<?x2x1x16x32xf16>
  %y = "llm.paged_attention"(%q, %new, %table, %slots, %slots, %start, %slots) {operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 1, 1, 0>, scale = 0.25 : f64, window = 0 : i64} : (tensor<?x1x32xf32>, tensor<?x2x1x16x32xf16>, tensor<?x?xi32>, tensor<?xi32>, tensor<?xi32>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x1x32xf32>
  return %y : tensor<?x1x32xf32>
}
