// PASSES: select-providers{target=metal}

// The choice and what was refused before it are noted on the op.
// CHECK-LABEL: func.func @matmul
// CHECK: "llm.linear"
// CHECK-SAME: llm.provider = "portable"
// CHECK-SAME: llm.refused = "cpu_c: {{[^"]+}}; portable/tiled: {{[^"]+}}"
// CHECK-SAME: llm.variant = "scalar"
func.func @matmul(%x: tensor<?x64xf32>, %w: tensor<32x64xf32>) -> tensor<?x32xf32> {
  %y = "llm.linear"(%x, %w) {operandSegmentSizes = array<i32: 1, 1, 0>} : (tensor<?x64xf32>, tensor<32x64xf32>) -> tensor<?x32xf32>
  return %y : tensor<?x32xf32>
}

// CHECK-LABEL: func.func @norm
// CHECK: "llm.rms_norm"
// CHECK-SAME: {eps = 1.000000e-05 : f64, llm.provider = "portable"}
func.func @norm(%x: tensor<?x64xf32>, %w: tensor<64xf32>) -> tensor<?x64xf32> {
  %a = "llm.rms_norm"(%x, %w) {eps = 1.0e-05 : f64} : (tensor<?x64xf32>, tensor<64xf32>) -> tensor<?x64xf32>
  return %a : tensor<?x64xf32>
}
