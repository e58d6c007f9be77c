// PASSES: chain-kernels

// Two layers of one matmul and one append each, then a portable op.  A chain ends before the second
// op that writes pages, which stands alone.  Each of its five kernels has 32 counters: a matmul is
// two, the rounding of its activations and itself.
// CHECK-LABEL: util.func public @layers
// CHECK: %[[TEAM:.*]] = flow.tensor.splat %{{.*}} : tensor<160xi32>
// CHECK: %[[SLOT:.*]] = arith.constant 0 : index
// CHECK: %[[A:.*]]:3 = "llm.chain"(%[[TEAM]], %[[SLOT]], %{{.*}}) ({
// CHECK: "llm.packed_matmul"
// CHECK: tensor.expand_shape
// CHECK: "llm.append_kv"
// CHECK: %[[B:.*]] = "llm.packed_matmul"
// CHECK: "llm.yield"(%{{.*}}, %[[B]]) : (tensor<?x2x1x16x16xf32>, tensor<?x16xf32>) -> ()
// CHECK: }) : (tensor<160xi32>, index, {{.*}}) -> (tensor<?x2x1x16x16xf32>, tensor<?x16xf32>, tensor<160xi32>)
// CHECK-NOT: llm.chain
// CHECK: %[[H:.*]] = tensor.expand_shape %[[A]]#1
// CHECK: "llm.append_kv"(%{{.*}}, %[[H]], %[[H]], %{{.*}})
// CHECK: "llm.rms_norm"(%[[A]]#1
util.func public @layers(%x: tensor<?x32xf32>, %w0: tensor<544xi8>, %norm: tensor<16xf32>, %slots: tensor<?xi32>, %kv0: tensor<?x2x1x16x16xf32>, %kv1: tensor<?x2x1x16x16xf32>) -> (tensor<?x2x1x16x16xf32>, tensor<?x2x1x16x16xf32>, tensor<?x16xf32>) {
  %c0 = arith.constant 0 : index
  %T = tensor.dim %x, %c0 : tensor<?x32xf32>
  %k = "llm.packed_matmul"(%x, %w0) {format = "q8_0", activations = "int8", rows = 16 : i64, llm.provider = "cpu_c", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x32xf32>, tensor<544xi8>) -> tensor<?x16xf32>
  %h = tensor.expand_shape %k [[0], [1, 2]] output_shape [%T, 1, 16] : tensor<?x16xf32> into tensor<?x1x16xf32>
  %new0 = "llm.append_kv"(%kv0, %h, %h, %slots) {llm.provider = "cpu_c"} : (tensor<?x2x1x16x16xf32>, tensor<?x1x16xf32>, tensor<?x1x16xf32>, tensor<?xi32>) -> tensor<?x2x1x16x16xf32>
  %k1 = "llm.packed_matmul"(%x, %w0) {format = "q8_0", activations = "int8", rows = 16 : i64, llm.provider = "cpu_c", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x32xf32>, tensor<544xi8>) -> tensor<?x16xf32>
  %h1 = tensor.expand_shape %k1 [[0], [1, 2]] output_shape [%T, 1, 16] : tensor<?x16xf32> into tensor<?x1x16xf32>
  %new1 = "llm.append_kv"(%kv1, %h1, %h1, %slots) {llm.provider = "cpu_c"} : (tensor<?x2x1x16x16xf32>, tensor<?x1x16xf32>, tensor<?x1x16xf32>, tensor<?xi32>) -> tensor<?x2x1x16x16xf32>
  %n = "llm.rms_norm"(%k1, %norm) {eps = 1.0e-05 : f64, llm.provider = "portable"} : (tensor<?x16xf32>, tensor<16xf32>) -> tensor<?x16xf32>
  util.return %new0, %new1, %n : tensor<?x2x1x16x16xf32>, tensor<?x2x1x16x16xf32>, tensor<?x16xf32>
}

// What is seen in another shape outside is so after the chain; a kernel alone is no chain.
// CHECK-LABEL: util.func public @views
// CHECK: %[[C:.*]]:2 = "llm.chain"
// CHECK: }) :
// CHECK: %[[V:.*]] = tensor.expand_shape %[[C]]#0
// CHECK: util.return %[[V]]
util.func public @views(%x: tensor<?x32xf32>, %w: tensor<1088xi8>) -> tensor<?x2x16xf32> {
  %c0 = arith.constant 0 : index
  %T = tensor.dim %x, %c0 : tensor<?x32xf32>
  %a = "llm.packed_matmul"(%x, %w) {format = "q8_0", activations = "int8", rows = 32 : i64, llm.provider = "cpu_c", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x32xf32>, tensor<1088xi8>) -> tensor<?x32xf32>
  %b = "llm.packed_matmul"(%a, %w) {format = "q8_0", activations = "int8", rows = 32 : i64, llm.provider = "cpu_c", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x32xf32>, tensor<1088xi8>) -> tensor<?x32xf32>
  %v = tensor.expand_shape %b [[0], [1, 2]] output_shape [%T, 2, 16] : tensor<?x32xf32> into tensor<?x2x16xf32>
  %c = "llm.packed_matmul"(%b, %w) {format = "q8_0", activations = "int8", rows = 32 : i64, llm.provider = "cpu_c", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x32xf32>, tensor<1088xi8>) -> tensor<?x32xf32>
  util.return %v : tensor<?x2x16xf32>
}

// CHECK-LABEL: util.func public @alone
// CHECK-NOT: llm.chain
// CHECK: "llm.append_kv"
util.func public @alone(%h: tensor<?x1x16xf32>, %slots: tensor<?xi32>, %kv: tensor<?x2x1x16x16xf32>) -> tensor<?x2x1x16x16xf32> {
  %new = "llm.append_kv"(%kv, %h, %h, %slots) {llm.provider = "cpu_c"} : (tensor<?x2x1x16x16xf32>, tensor<?x1x16xf32>, tensor<?x1x16xf32>, tensor<?xi32>) -> tensor<?x2x1x16x16xf32>
  util.return %new : tensor<?x2x1x16x16xf32>
}
