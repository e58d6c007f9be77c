// PASSES: fuse-matmul,dce-llm

// Weights of 16 rows and 64 columns of q4_1: 640 bytes.
// CHECK: util.global private @"__packed.gate+up.packed" {{.*}}\22sources\22: [\22gate\22, \22up\22], \22in_turn\22: true{{.*}} : tensor<1280xi8>
// CHECK-NOT: gate+up8
util.global private @gate {llm.packed = "{\22name\22: \22gate.packed\22, \22format\22: \22q4_1\22, \22sources\22: [\22gate\22], \22in_turn\22: false}"} = #flow.parameter.named<"model"::"gate.packed"> : tensor<640xi8>
util.global private @up {llm.packed = "{\22name\22: \22up.packed\22, \22format\22: \22q4_1\22, \22sources\22: [\22up\22], \22in_turn\22: false}"} = #flow.parameter.named<"model"::"up.packed"> : tensor<640xi8>
util.global private @up8 {llm.packed = "{\22name\22: \22up8.packed\22, \22format\22: \22q8_0\22, \22sources\22: [\22up8\22], \22in_turn\22: false}"} = #flow.parameter.named<"model"::"up8.packed"> : tensor<1088xi8>

// The norm is every matmul's own: it may have several readers.
// CHECK-LABEL: util.func public @norm
// CHECK-SAME: %[[X:[a-z0-9]*]]: tensor<?x64xf32>, %[[N:[a-z0-9]*]]: tensor<64xf32>
// CHECK-NOT: llm.rms_norm
// CHECK-COUNT-2: "llm.packed_matmul"(%[[X]], %{{.*}}, %[[N]]) {activations = "int8", eps = 1.000000e-05 : f64, {{.*}}operandSegmentSizes = array<i32: 1, 1, 1, 0, 0>
// CHECK-NOT: llm.rms_norm
util.func public @norm(%x: tensor<?x64xf32>, %n: tensor<64xf32>) -> (tensor<?x16xf32>, tensor<?x16xf32>) {
  %g = util.global.load @gate : tensor<640xi8>
  %u = util.global.load @up : tensor<640xi8>
  %a = "llm.rms_norm"(%x, %n) {eps = 1.0e-05 : f64} : (tensor<?x64xf32>, tensor<64xf32>) -> tensor<?x64xf32>
  %y = "llm.packed_matmul"(%a, %g) {format = "q4_1", activations = "int8", rows = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x64xf32>, tensor<640xi8>) -> tensor<?x16xf32>
  %z = "llm.packed_matmul"(%a, %u) {format = "q4_1", activations = "int8", rows = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x64xf32>, tensor<640xi8>) -> tensor<?x16xf32>
  util.return %y, %z : tensor<?x16xf32>, tensor<?x16xf32>
}

// A norm that somebody else reads too stays, and the matmul computes it for itself.
// CHECK-LABEL: util.func public @norm_read_elsewhere
// CHECK: %[[A:.*]] = "llm.rms_norm"
// CHECK: %[[Y:.*]] = "llm.packed_matmul"({{.*}}operandSegmentSizes = array<i32: 1, 1, 1, 0, 0>
// CHECK: util.return %[[A]], %[[Y]]
util.func public @norm_read_elsewhere(%x: tensor<?x64xf32>, %n: tensor<64xf32>) -> (tensor<?x64xf32>, tensor<?x16xf32>) {
  %g = util.global.load @gate : tensor<640xi8>
  %a = "llm.rms_norm"(%x, %n) {eps = 1.0e-05 : f64} : (tensor<?x64xf32>, tensor<64xf32>) -> tensor<?x64xf32>
  %y = "llm.packed_matmul"(%a, %g) {format = "q4_1", activations = "int8", rows = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x64xf32>, tensor<640xi8>) -> tensor<?x16xf32>
  util.return %a, %y : tensor<?x64xf32>, tensor<?x16xf32>
}

// CHECK-LABEL: util.func public @gelu
// CHECK: %[[W:.*]] = util.global.load @"__packed.gate+up.packed" : tensor<1280xi8>
// CHECK: %[[Y:.*]] = "llm.packed_matmul"(%{{.*}}, %[[W]]) {{.*}}gated = "gelu_tanh"{{.*}}rows = 16 : i64
// CHECK-NOT: "llm.
// CHECK: util.return %[[Y]]
util.func public @gelu(%x: tensor<?x64xf32>) -> tensor<?x16xf32> {
  %g = util.global.load @gate : tensor<640xi8>
  %u = util.global.load @up : tensor<640xi8>
  %y = "llm.packed_matmul"(%x, %g) {format = "q4_1", activations = "int8", rows = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x64xf32>, tensor<640xi8>) -> tensor<?x16xf32>
  %z = "llm.packed_matmul"(%x, %u) {format = "q4_1", activations = "int8", rows = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x64xf32>, tensor<640xi8>) -> tensor<?x16xf32>
  %s = "llm.gelu_mul"(%y, %z) : (tensor<?x16xf32>, tensor<?x16xf32>) -> tensor<?x16xf32>
  util.return %s : tensor<?x16xf32>
}

// CHECK-LABEL: util.func public @silu
// CHECK: %[[W:.*]] = util.global.load @"__packed.gate+up.packed" : tensor<1280xi8>
// CHECK: %[[Y:.*]] = "llm.packed_matmul"(%{{.*}}, %[[W]]) {{.*}}gated = "silu"{{.*}}rows = 16 : i64
// CHECK-NOT: "llm.
// CHECK: util.return %[[Y]]
util.func public @silu(%x: tensor<?x64xf32>) -> tensor<?x16xf32> {
  %g = util.global.load @gate : tensor<640xi8>
  %u = util.global.load @up : tensor<640xi8>
  %y = "llm.packed_matmul"(%x, %g) {format = "q4_1", activations = "int8", rows = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x64xf32>, tensor<640xi8>) -> tensor<?x16xf32>
  %z = "llm.packed_matmul"(%x, %u) {format = "q4_1", activations = "int8", rows = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x64xf32>, tensor<640xi8>) -> tensor<?x16xf32>
  %s = "llm.silu_mul"(%y, %z) : (tensor<?x16xf32>, tensor<?x16xf32>) -> tensor<?x16xf32>
  util.return %s : tensor<?x16xf32>
}

// Gate and up of two formats are two matmuls.
// CHECK-LABEL: util.func public @silu_of_two_formats
// CHECK-COUNT-2: "llm.packed_matmul"
// CHECK: "llm.silu_mul"
util.func public @silu_of_two_formats(%x: tensor<?x64xf32>) -> tensor<?x16xf32> {
  %g = util.global.load @gate : tensor<640xi8>
  %u = util.global.load @up8 : tensor<1088xi8>
  %y = "llm.packed_matmul"(%x, %g) {format = "q4_1", activations = "int8", rows = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x64xf32>, tensor<640xi8>) -> tensor<?x16xf32>
  %z = "llm.packed_matmul"(%x, %u) {format = "q8_0", activations = "int8", rows = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x64xf32>, tensor<1088xi8>) -> tensor<?x16xf32>
  %s = "llm.silu_mul"(%y, %z) : (tensor<?x16xf32>, tensor<?x16xf32>) -> tensor<?x16xf32>
  util.return %s : tensor<?x16xf32>
}

// So are those with biases: the kernel has no place for them.
// CHECK-LABEL: util.func public @silu_with_bias
// CHECK-COUNT-2: "llm.packed_matmul"
// CHECK: "llm.silu_mul"
util.func public @silu_with_bias(%x: tensor<?x64xf32>, %b: tensor<16xf32>) -> tensor<?x16xf32> {
  %g = util.global.load @gate : tensor<640xi8>
  %u = util.global.load @up : tensor<640xi8>
  %y = "llm.packed_matmul"(%x, %g, %b) {format = "q4_1", activations = "int8", rows = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 1, 0>} : (tensor<?x64xf32>, tensor<640xi8>, tensor<16xf32>) -> tensor<?x16xf32>
  %z = "llm.packed_matmul"(%x, %u, %b) {format = "q4_1", activations = "int8", rows = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 1, 0>} : (tensor<?x64xf32>, tensor<640xi8>, tensor<16xf32>) -> tensor<?x16xf32>
  %s = "llm.silu_mul"(%y, %z) : (tensor<?x16xf32>, tensor<?x16xf32>) -> tensor<?x16xf32>
  util.return %s : tensor<?x16xf32>
}

// And those of two inputs, of two precisions, and of a gate that has another reader.
// CHECK-LABEL: util.func public @silu_apart
// CHECK-COUNT-3: "llm.silu_mul"
util.func public @silu_apart(%x: tensor<?x64xf32>, %x2: tensor<?x64xf32>) -> (tensor<?x16xf32>, tensor<?x16xf32>, tensor<?x16xf32>, tensor<?x16xf32>) {
  %g = util.global.load @gate : tensor<640xi8>
  %u = util.global.load @up : tensor<640xi8>
  %y = "llm.packed_matmul"(%x, %g) {format = "q4_1", activations = "int8", rows = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x64xf32>, tensor<640xi8>) -> tensor<?x16xf32>
  %z = "llm.packed_matmul"(%x2, %u) {format = "q4_1", activations = "int8", rows = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x64xf32>, tensor<640xi8>) -> tensor<?x16xf32>
  %s = "llm.silu_mul"(%y, %z) : (tensor<?x16xf32>, tensor<?x16xf32>) -> tensor<?x16xf32>
  %y2 = "llm.packed_matmul"(%x, %g) {format = "q4_1", activations = "int8", rows = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x64xf32>, tensor<640xi8>) -> tensor<?x16xf32>
  %z2 = "llm.packed_matmul"(%x, %u) {format = "q4_1", activations = "int16", rows = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x64xf32>, tensor<640xi8>) -> tensor<?x16xf32>
  %s2 = "llm.silu_mul"(%y2, %z2) : (tensor<?x16xf32>, tensor<?x16xf32>) -> tensor<?x16xf32>
  %y3 = "llm.packed_matmul"(%x, %g) {format = "q4_1", activations = "int8", rows = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x64xf32>, tensor<640xi8>) -> tensor<?x16xf32>
  %z3 = "llm.packed_matmul"(%x, %u) {format = "q4_1", activations = "int8", rows = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x64xf32>, tensor<640xi8>) -> tensor<?x16xf32>
  %s3 = "llm.silu_mul"(%y3, %z3) : (tensor<?x16xf32>, tensor<?x16xf32>) -> tensor<?x16xf32>
  util.return %s, %s2, %s3, %y3 : tensor<?x16xf32>, tensor<?x16xf32>, tensor<?x16xf32>, tensor<?x16xf32>
}

// A residual may stand on either side.
// CHECK-LABEL: util.func public @residual
// CHECK-SAME: %{{[a-z0-9]*}}: tensor<?x64xf32>, %[[R:[a-z0-9]*]]: tensor<?x16xf32>
// CHECK: %[[A:.*]] = "llm.packed_matmul"(%{{.*}}, %{{.*}}, %[[R]]) {{.*}}operandSegmentSizes = array<i32: 1, 1, 0, 0, 1>
// CHECK: %[[B:.*]] = "llm.packed_matmul"(%{{.*}}, %{{.*}}, %[[A]]) {{.*}}operandSegmentSizes = array<i32: 1, 1, 0, 0, 1>
// CHECK-NOT: llm.add
// CHECK: util.return %[[B]]
util.func public @residual(%x: tensor<?x64xf32>, %r: tensor<?x16xf32>) -> tensor<?x16xf32> {
  %g = util.global.load @gate : tensor<640xi8>
  %y = "llm.packed_matmul"(%x, %g) {format = "q4_1", activations = "int8", rows = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x64xf32>, tensor<640xi8>) -> tensor<?x16xf32>
  %a = "llm.add"(%r, %y) : (tensor<?x16xf32>, tensor<?x16xf32>) -> tensor<?x16xf32>
  %z = "llm.packed_matmul"(%x, %g) {format = "q4_1", activations = "int8", rows = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x64xf32>, tensor<640xi8>) -> tensor<?x16xf32>
  %b = "llm.add"(%z, %a) : (tensor<?x16xf32>, tensor<?x16xf32>) -> tensor<?x16xf32>
  util.return %b : tensor<?x16xf32>
}

// A product with two readers is added by itself, and one that has a residual gets no other.
// CHECK-LABEL: util.func public @no_residual
// CHECK: "llm.packed_matmul"({{.*}}operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>
// CHECK: "llm.add"
// CHECK: "llm.packed_matmul"({{.*}}operandSegmentSizes = array<i32: 1, 1, 0, 0, 1>
// CHECK: "llm.add"
util.func public @no_residual(%x: tensor<?x64xf32>, %r: tensor<?x16xf32>) -> (tensor<?x16xf32>, tensor<?x16xf32>, tensor<?x16xf32>) {
  %g = util.global.load @gate : tensor<640xi8>
  %y = "llm.packed_matmul"(%x, %g) {format = "q4_1", activations = "int8", rows = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x64xf32>, tensor<640xi8>) -> tensor<?x16xf32>
  %a = "llm.add"(%r, %y) : (tensor<?x16xf32>, tensor<?x16xf32>) -> tensor<?x16xf32>
  %z = "llm.packed_matmul"(%x, %g, %r) {format = "q4_1", activations = "int8", rows = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 1>} : (tensor<?x64xf32>, tensor<640xi8>, tensor<?x16xf32>) -> tensor<?x16xf32>
  %b = "llm.add"(%r, %z) : (tensor<?x16xf32>, tensor<?x16xf32>) -> tensor<?x16xf32>
  util.return %a, %b, %y : tensor<?x16xf32>, tensor<?x16xf32>, tensor<?x16xf32>
}

// The largest logit is found where the logits are made; not where somebody else reads them too.
// CHECK-LABEL: util.func public @argmax
// CHECK: %[[A:.*]] = "llm.packed_argmax"(
// CHECK: %[[Y:.*]] = "llm.packed_matmul"(
// CHECK: %[[B:.*]] = "llm.argmax"(%[[Y]])
// CHECK: util.return %[[A]], %[[B]], %[[Y]]
util.func public @argmax(%x: tensor<?x64xf32>) -> (tensor<?xi32>, tensor<?xi32>, tensor<?x16xf32>) {
  %g = util.global.load @gate : tensor<640xi8>
  %y = "llm.packed_matmul"(%x, %g) {llm.provider = "cpu_c", format = "q4_1", activations = "int8", rows = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x64xf32>, tensor<640xi8>) -> tensor<?x16xf32>
  %a = "llm.argmax"(%y) : (tensor<?x16xf32>) -> tensor<?xi32>
  %z = "llm.packed_matmul"(%x, %g) {llm.provider = "cpu_c", format = "q4_1", activations = "int8", rows = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x64xf32>, tensor<640xi8>) -> tensor<?x16xf32>
  %b = "llm.argmax"(%z) : (tensor<?x16xf32>) -> tensor<?xi32>
  util.return %a, %b, %z : tensor<?xi32>, tensor<?xi32>, tensor<?x16xf32>
}

// So are the largest ones.
// CHECK-LABEL: util.func public @topk
// CHECK: %[[T:.*]]:3 = "llm.packed_topk"({{.*}}k = 5 : i64
// CHECK-NOT: llm.packed_matmul
// CHECK: util.return %[[T]]#0, %[[T]]#1, %[[T]]#2
util.func public @topk(%x: tensor<?x64xf32>) -> (tensor<?x5xf32>, tensor<?x5xi32>, tensor<?xf32>) {
  %g = util.global.load @gate : tensor<640xi8>
  %y = "llm.packed_matmul"(%x, %g) {llm.provider = "cpu_c", format = "q4_1", activations = "int8", rows = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x64xf32>, tensor<640xi8>) -> tensor<?x16xf32>
  %v, %i, %w = "llm.topk"(%y) {k = 5 : i64} : (tensor<?x16xf32>) -> (tensor<?x5xf32>, tensor<?x5xi32>, tensor<?xf32>)
  util.return %v, %i, %w : tensor<?x5xf32>, tensor<?x5xi32>, tensor<?xf32>
}
