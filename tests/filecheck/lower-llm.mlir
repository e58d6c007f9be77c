// PASSES: select-providers{target=cpu:x86-64-v3},lower-llm

// The op becomes its lowering, inlined: no op, no call and no helper function is left.
// CHECK-LABEL: func.func @norm
// CHECK-NOT: llm.
// CHECK: linalg.generic {{.*}}iterator_types = ["parallel", "reduction"]
// CHECK: math.sqrt
// CHECK-NOT: call
// CHECK: return
// CHECK-NOT: func.func private
func.func @norm(%x: tensor<?x64xf32>, %w: tensor<64xf32>) -> tensor<?x64xf32> {
  %a = "llm.rms_norm"(%x, %w) {eps = 1.0e-05 : f64} : (tensor<?x64xf32>, tensor<64xf32>) -> tensor<?x64xf32>
  return %a : tensor<?x64xf32>
}
