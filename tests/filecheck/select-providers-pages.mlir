// PASSES: select-providers{target=cpu:x86-64-v3}

// The kernels cannot attend with 64 query heads of 128 on one KV head.  Then they may not append
// either, in no layer: another lowering would read the elements of a page in another order.
// CHECK-LABEL: func.func @layer
// CHECK: "llm.append_kv"({{.*}}llm.provider = "portable", llm.refused = "cpu_c: another op of the model cannot read its pages"
// CHECK: "llm.paged_attention"({{.*}}llm.provider = "portable", llm.refused = "cpu_c: 64 heads of 128 on a KV head are more than 4096 numbers{{[^"]*}}"
func.func @layer(%q: tensor<?x64x128xf32>, %k: tensor<?x1x128xf32>, %kv: tensor<?x2x1x16x128xf32>, %slots: tensor<?xi32>, %table: tensor<?x?xi32>, %start: tensor<?xi32>) -> tensor<?x64x128xf32> {
  %new = "llm.append_kv"(%kv, %k, %k, %slots) : (tensor<?x2x1x16x128xf32>, tensor<?x1x128xf32>, tensor<?x1x128xf32>, tensor<?xi32>) -> tensor<?x2x1x16x128xf32>
  %y = "llm.paged_attention"(%q, %new, %table, %slots, %slots, %start, %slots) {operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 1, 1, 0>, scale = 0.25 : f64, window = 0 : i64} : (tensor<?x64x128xf32>, tensor<?x2x1x16x128xf32>, tensor<?x?xi32>, tensor<?xi32>, tensor<?xi32>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x64x128xf32>
  return %y : tensor<?x64x128xf32>
}

// CHECK-LABEL: func.func @another_layer
// CHECK: "llm.append_kv"({{.*}}llm.provider = "portable"
// CHECK: "llm.paged_attention"({{.*}}llm.provider = "portable", llm.refused = "cpu_c: another op of the model cannot read its pages{{[^"]*}}"
func.func @another_layer(%q: tensor<?x1x32xf32>, %kv: tensor<?x2x1x16x32xf32>, %slots: tensor<?xi32>, %table: tensor<?x?xi32>, %start: tensor<?xi32>) -> tensor<?x1x32xf32> {
  %new = "llm.append_kv"(%kv, %q, %q, %slots) : (tensor<?x2x1x16x32xf32>, tensor<?x1x32xf32>, tensor<?x1x32xf32>, tensor<?xi32>) -> tensor<?x2x1x16x32xf32>
  %y = "llm.paged_attention"(%q, %new, %table, %slots, %slots, %start, %slots) {operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 1, 1, 0>, scale = 0.25 : f64, window = 0 : i64} : (tensor<?x1x32xf32>, tensor<?x2x1x16x32xf32>, tensor<?x?xi32>, tensor<?xi32>, tensor<?xi32>, tensor<?xi32>, tensor<?xi32>) -> tensor<?x1x32xf32>
  return %y : tensor<?x1x32xf32>
}
