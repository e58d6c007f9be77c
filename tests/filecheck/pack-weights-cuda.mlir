// PASSES: select-providers{target=cuda:sm_80},pack-weights,fuse-matmul,dce-llm

// The GPU kernels read the same packed weights as the C kernels, and take in the norm and the
// residual; integers are no activations there: the next better precision that they have is.
// CHECK: util.global private @__packed.w.packed {{.*}} : tensor<1280xi8>
util.global private @w.quants = #flow.parameter.named<"model"::"w.quants"> : tensor<32x2x16xi8>
util.global private @w.scales = #flow.parameter.named<"model"::"w.scales"> : tensor<32x2xf32>
util.global private @w.mins = #flow.parameter.named<"model"::"w.mins"> : tensor<32x2xf32>

// CHECK-LABEL: util.func public @residual
// CHECK: "llm.packed_matmul"
// CHECK-SAME: activations = "f32"
// CHECK-SAME: llm.provider = "cuda_ptx"
// CHECK-SAME: operandSegmentSizes = array<i32: 1, 1, 1, 0, 1>
// CHECK-NOT: llm.rms_norm
// CHECK-NOT: llm.add
util.func public @residual(%x: tensor<?x64xf32>, %g: tensor<64xf32>, %r: tensor<?x32xf32>) -> tensor<?x32xf32> {
  %q = util.global.load @w.quants : tensor<32x2x16xi8>
  %s = util.global.load @w.scales : tensor<32x2xf32>
  %m = util.global.load @w.mins : tensor<32x2xf32>
  %n = "llm.rms_norm"(%x, %g) {eps = 1.0e-05 : f64} : (tensor<?x64xf32>, tensor<64xf32>) -> tensor<?x64xf32>
  %y = "llm.quantized_matmul"(%n, %q, %s, %m) {bits = 4 : i64, group_size = 32 : i64, zero_point = 0 : i64, format = "q4_1", activations = "int12+", operandSegmentSizes = array<i32: 1, 1, 1, 1, 0>} : (tensor<?x64xf32>, tensor<32x2x16xi8>, tensor<32x2xf32>, tensor<32x2xf32>) -> tensor<?x32xf32>
  %z = "llm.add"(%r, %y) : (tensor<?x32xf32>, tensor<?x32xf32>) -> tensor<?x32xf32>
  util.return %z : tensor<?x32xf32>
}
