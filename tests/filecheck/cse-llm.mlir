// PASSES: cse-llm

// Equal ops are merged, and so are ops that become equal by it.
// CHECK-LABEL: func.func @merged
// CHECK: %[[A:.*]] = "llm.rms_norm"
// CHECK: %[[B:.*]] = "llm.silu_mul"(%[[A]], %[[A]])
// CHECK-NOT: llm.
// CHECK: return %[[B]], %[[B]]
func.func @merged(%x: tensor<?x64xf32>, %w: tensor<64xf32>) -> (tensor<?x64xf32>, tensor<?x64xf32>) {
  %a = "llm.rms_norm"(%x, %w) {eps = 1.0e-05 : f64} : (tensor<?x64xf32>, tensor<64xf32>) -> tensor<?x64xf32>
  %b = "llm.rms_norm"(%x, %w) {eps = 1.0e-05 : f64} : (tensor<?x64xf32>, tensor<64xf32>) -> tensor<?x64xf32>
  %c = "llm.silu_mul"(%a, %b) : (tensor<?x64xf32>, tensor<?x64xf32>) -> tensor<?x64xf32>
  %d = "llm.silu_mul"(%b, %a) : (tensor<?x64xf32>, tensor<?x64xf32>) -> tensor<?x64xf32>
  return %c, %d : tensor<?x64xf32>, tensor<?x64xf32>
}

// Another attribute, or another operand, is another op.
// CHECK-LABEL: func.func @kept
// CHECK-COUNT-3: "llm.rms_norm"
// CHECK: return
func.func @kept(%x: tensor<?x64xf32>, %w: tensor<64xf32>, %v: tensor<64xf32>) -> (tensor<?x64xf32>, tensor<?x64xf32>, tensor<?x64xf32>) {
  %a = "llm.rms_norm"(%x, %w) {eps = 1.0e-05 : f64} : (tensor<?x64xf32>, tensor<64xf32>) -> tensor<?x64xf32>
  %b = "llm.rms_norm"(%x, %w) {eps = 1.0e-06 : f64} : (tensor<?x64xf32>, tensor<64xf32>) -> tensor<?x64xf32>
  %c = "llm.rms_norm"(%x, %v) {eps = 1.0e-05 : f64} : (tensor<?x64xf32>, tensor<64xf32>) -> tensor<?x64xf32>
  return %a, %b, %c : tensor<?x64xf32>, tensor<?x64xf32>, tensor<?x64xf32>
}

// What stands in two blocks is not merged: neither dominates the other.
// CHECK-LABEL: func.func @blocks
// CHECK-COUNT-2: "llm.rms_norm"
func.func @blocks(%p: i1, %x: tensor<?x64xf32>, %w: tensor<64xf32>) -> tensor<?x64xf32> {
  %r = scf.if %p -> tensor<?x64xf32> {
    %a = "llm.rms_norm"(%x, %w) {eps = 1.0e-05 : f64} : (tensor<?x64xf32>, tensor<64xf32>) -> tensor<?x64xf32>
    scf.yield %a : tensor<?x64xf32>
  } else {
    %b = "llm.rms_norm"(%x, %w) {eps = 1.0e-05 : f64} : (tensor<?x64xf32>, tensor<64xf32>) -> tensor<?x64xf32>
    scf.yield %b : tensor<?x64xf32>
  }
  return %r : tensor<?x64xf32>
}
