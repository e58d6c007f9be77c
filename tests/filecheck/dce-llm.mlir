// PASSES: dce-llm

// An op that only a dead op used is dead too.
// CHECK-LABEL: func.func @dead
// CHECK-NOT: llm.
// CHECK: return
func.func @dead(%x: tensor<?x64xf32>, %w: tensor<64xf32>) {
  %a = "llm.rms_norm"(%x, %w) {eps = 1.0e-05 : f64} : (tensor<?x64xf32>, tensor<64xf32>) -> tensor<?x64xf32>
  %b = "llm.silu_mul"(%a, %a) : (tensor<?x64xf32>, tensor<?x64xf32>) -> tensor<?x64xf32>
  return
}

// CHECK-LABEL: func.func @alive
// CHECK: "llm.rms_norm"
// CHECK: return
func.func @alive(%x: tensor<?x64xf32>, %w: tensor<64xf32>) -> tensor<?x64xf32> {
  %a = "llm.rms_norm"(%x, %w) {eps = 1.0e-05 : f64} : (tensor<?x64xf32>, tensor<64xf32>) -> tensor<?x64xf32>
  return %a : tensor<?x64xf32>
}
