// PASSES: raise-torch-llm

// Operands cross by casts, constants become attributes, `none` an absent operand,
// and other torch operators are left alone.

// CHECK-LABEL: func.func @norm
// CHECK-SAME: %[[X:.*]]: !torch.vtensor<[?,64],f32>, %[[W:.*]]: !torch.vtensor<[64],f32>
// CHECK-DAG: %[[XB:.*]] = torch_c.to_builtin_tensor %[[X]] : !torch.vtensor<[?,64],f32> -> tensor<?x64xf32>
// CHECK-DAG: %[[WB:.*]] = torch_c.to_builtin_tensor %[[W]] : !torch.vtensor<[64],f32> -> tensor<64xf32>
// CHECK: %[[Y:.*]] = "llm.rms_norm"(%[[XB]], %[[WB]]) {eps = 1.000000e-05 : f64}
// CHECK-SAME: (tensor<?x64xf32>, tensor<64xf32>) -> tensor<?x64xf32>
// CHECK: %[[R:.*]] = torch_c.from_builtin_tensor %[[Y]] : tensor<?x64xf32> -> !torch.vtensor<[?,64],f32>
// CHECK: return %[[R]]
func.func @norm(%x: !torch.vtensor<[?,64],f32>, %w: !torch.vtensor<[64],f32>) -> !torch.vtensor<[?,64],f32> {
  %eps = torch.constant.float 1.000000e-05
  %y = torch.operator "torch.llm.rms_norm"(%x, %w, %eps) : (!torch.vtensor<[?,64],f32>, !torch.vtensor<[64],f32>, !torch.float) -> !torch.vtensor<[?,64],f32>
  return %y : !torch.vtensor<[?,64],f32>
}

// CHECK-LABEL: func.func @linear_without_bias
// CHECK: "llm.linear"(%{{.*}}, %{{.*}}) {activations = "bf16+", operandSegmentSizes = array<i32: 1, 1, 0>}
// CHECK-SAME: (tensor<?x64xf32>, tensor<32x64xbf16>) -> tensor<?x32xf32>
func.func @linear_without_bias(%x: !torch.vtensor<[?,64],f32>, %w: !torch.vtensor<[32,64],bf16>) -> !torch.vtensor<[?,32],f32> {
  %none = torch.constant.none
  %activations = torch.constant.str "bf16+"
  %y = torch.operator "torch.llm.linear"(%x, %w, %none, %activations) : (!torch.vtensor<[?,64],f32>, !torch.vtensor<[32,64],bf16>, !torch.none, !torch.str) -> !torch.vtensor<[?,32],f32>
  return %y : !torch.vtensor<[?,32],f32>
}

// CHECK-LABEL: func.func @quantised
// CHECK: "llm.quantized_matmul"({{.*}}) {activations = "int8+", bits = 4 : i64,
// CHECK-SAME: format = "q4_1", group_size = 32 : i64,
// CHECK-SAME: operandSegmentSizes = array<i32: 1, 1, 1, 1, 0>, zero_point = 0 : i64}
// CHECK-SAME: tensor<8x2x16xi8>
func.func @quantised(%x: !torch.vtensor<[?,64],f32>, %q: !torch.vtensor<[8,2,16],si8>, %s: !torch.vtensor<[8,2],f32>) -> !torch.vtensor<[?,8],f32> {
  %none = torch.constant.none
  %bits = torch.constant.int 4
  %g = torch.constant.int 32
  %zp = torch.constant.int 0
  %format = torch.constant.str "q4_1"
  %activations = torch.constant.str "int8+"
  %y = torch.operator "torch.llm.quantized_matmul"(%x, %q, %s, %s, %none, %bits, %g, %zp, %format, %activations) : (!torch.vtensor<[?,64],f32>, !torch.vtensor<[8,2,16],si8>, !torch.vtensor<[8,2],f32>, !torch.vtensor<[8,2],f32>, !torch.none, !torch.int, !torch.int, !torch.int, !torch.str, !torch.str) -> !torch.vtensor<[?,8],f32>
  return %y : !torch.vtensor<[?,8],f32>
}

// CHECK-LABEL: func.func @not_ours
// CHECK: torch.operator "torch.other.op"
func.func @not_ours(%x: !torch.vtensor<[?,64],f32>) -> !torch.vtensor<[?,64],f32> {
  %y = torch.operator "torch.other.op"(%x) : (!torch.vtensor<[?,64],f32>) -> !torch.vtensor<[?,64],f32>
  return %y : !torch.vtensor<[?,64],f32>
}
