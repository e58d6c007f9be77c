// PASSES: fuse-rope-append,dce-llm

// Two query heads and one head of keys and values, each of 16; x has 32 columns; q8_0.
// The three weights become one, one below the other: q, k, v.  So do the biases.
// CHECK-DAG: util.global private @"__packed.q+k+v.packed" {{.*}}\22q8_0\22, \22sources\22: [\22q\22, \22k\22, \22v\22], \22in_turn\22: false{{.*}} : tensor<2176xi8>
// CHECK-DAG: util.global private @"__packed.q.bias+k.bias+v.bias" {{.*}}\22format\22: \22\22, \22sources\22: [\22q.bias\22, \22k.bias\22, \22v.bias\22]{{.*}} : tensor<64xf32>
util.global private @q {llm.packed = "{\22name\22: \22q.packed\22, \22format\22: \22q8_0\22, \22sources\22: [\22q\22], \22in_turn\22: false}"} = #flow.parameter.named<"model"::"q.packed"> : tensor<1088xi8>
util.global private @k {llm.packed = "{\22name\22: \22k.packed\22, \22format\22: \22q8_0\22, \22sources\22: [\22k\22], \22in_turn\22: false}"} = #flow.parameter.named<"model"::"k.packed"> : tensor<544xi8>
util.global private @v {llm.packed = "{\22name\22: \22v.packed\22, \22format\22: \22q8_0\22, \22sources\22: [\22v\22], \22in_turn\22: false}"} = #flow.parameter.named<"model"::"v.packed"> : tensor<544xi8>
util.global private @v4 {llm.packed = "{\22name\22: \22v4.packed\22, \22format\22: \22q4_1\22, \22sources\22: [\22v4\22], \22in_turn\22: false}"} = #flow.parameter.named<"model"::"v4.packed"> : tensor<320xi8>
util.global private @q.bias = #flow.parameter.named<"model"::"q.bias"> : tensor<32xf32>
util.global private @k.bias = #flow.parameter.named<"model"::"k.bias"> : tensor<16xf32>
util.global private @v.bias = #flow.parameter.named<"model"::"v.bias"> : tensor<16xf32>

// CHECK-LABEL: util.func public @fused
// CHECK-SAME: %[[X:[a-z0-9]*]]: tensor<?x32xf32>
// CHECK: %[[W:.*]] = util.global.load @"__packed.q+k+v.packed"
// CHECK: %[[QKV:.*]] = "llm.packed_matmul"(%[[X]], %[[W]]) {{.*}}rows = 64 : i64
// CHECK: %[[Y:.*]]:2 = "llm.rope_append"(%[[QKV]], %{{.*}}) {eps = 0.000000e+00 : f64, llm.provider = "cpu_c", operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 0, 0>}
// CHECK-NOT: "llm.
// CHECK: util.return %[[Y]]#0, %[[Y]]#1
util.func public @fused(%x: tensor<?x32xf32>, %x2: tensor<?x32xf32>, %pos: tensor<?xi32>, %pos2: tensor<?xi32>, %table: tensor<64x16xf32>, %slots: tensor<?xi32>, %kv: tensor<?x2x1x16x16xf32>) -> (tensor<?x2x16xf32>, tensor<?x2x1x16x16xf32>) {
  %c0 = arith.constant 0 : index
  %T = tensor.dim %x, %c0 : tensor<?x32xf32>
  %wq = util.global.load @q : tensor<1088xi8>
  %q = "llm.packed_matmul"(%x, %wq) {format = "q8_0", activations = "int8", rows = 32 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x32xf32>, tensor<1088xi8>) -> tensor<?x32xf32>
  %wk = util.global.load @k : tensor<544xi8>
  %k = "llm.packed_matmul"(%x, %wk) {format = "q8_0", activations = "int8", rows = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x32xf32>, tensor<544xi8>) -> tensor<?x16xf32>
  %wv = util.global.load @v : tensor<544xi8>
  %v = "llm.packed_matmul"(%x, %wv) {format = "q8_0", activations = "int8", rows = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x32xf32>, tensor<544xi8>) -> tensor<?x16xf32>
  %qh = tensor.expand_shape %q [[0], [1, 2]] output_shape [%T, 2, 16] : tensor<?x32xf32> into tensor<?x2x16xf32>
  %qt = "llm.rope"(%qh, %pos, %table) : (tensor<?x2x16xf32>, tensor<?xi32>, tensor<64x16xf32>) -> tensor<?x2x16xf32>
  %kh = tensor.expand_shape %k [[0], [1, 2]] output_shape [%T, 1, 16] : tensor<?x16xf32> into tensor<?x1x16xf32>
  %kt = "llm.rope"(%kh, %pos, %table) : (tensor<?x1x16xf32>, tensor<?xi32>, tensor<64x16xf32>) -> tensor<?x1x16xf32>
  %vh = tensor.expand_shape %v [[0], [1, 2]] output_shape [%T, 1, 16] : tensor<?x16xf32> into tensor<?x1x16xf32>
  %new = "llm.append_kv"(%kv, %kt, %vh, %slots) {llm.provider = "cpu_c"} : (tensor<?x2x1x16x16xf32>, tensor<?x1x16xf32>, tensor<?x1x16xf32>, tensor<?xi32>) -> tensor<?x2x1x16x16xf32>
  util.return %qt, %new : tensor<?x2x16xf32>, tensor<?x2x1x16x16xf32>
}

// CHECK-LABEL: util.func public @biases
// CHECK: %[[B:.*]] = util.global.load @"__packed.q.bias+k.bias+v.bias" : tensor<64xf32>
// CHECK: "llm.packed_matmul"(%{{.*}}, %{{.*}}, %[[B]]) {{.*}}operandSegmentSizes = array<i32: 1, 1, 0, 1, 0>
// CHECK: "llm.rope_append"
// CHECK-NOT: "llm.
util.func public @biases(%x: tensor<?x32xf32>, %x2: tensor<?x32xf32>, %pos: tensor<?xi32>, %pos2: tensor<?xi32>, %table: tensor<64x16xf32>, %slots: tensor<?xi32>, %kv: tensor<?x2x1x16x16xf32>) -> (tensor<?x2x16xf32>, tensor<?x2x1x16x16xf32>) {
  %c0 = arith.constant 0 : index
  %T = tensor.dim %x, %c0 : tensor<?x32xf32>
  %wq = util.global.load @q : tensor<1088xi8>
  %bq = util.global.load @q.bias : tensor<32xf32>
  %q = "llm.packed_matmul"(%x, %wq, %bq) {format = "q8_0", activations = "int8", rows = 32 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 1, 0>} : (tensor<?x32xf32>, tensor<1088xi8>, tensor<32xf32>) -> tensor<?x32xf32>
  %wk = util.global.load @k : tensor<544xi8>
  %bk = util.global.load @k.bias : tensor<16xf32>
  %k = "llm.packed_matmul"(%x, %wk, %bk) {format = "q8_0", activations = "int8", rows = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 1, 0>} : (tensor<?x32xf32>, tensor<544xi8>, tensor<16xf32>) -> tensor<?x16xf32>
  %wv = util.global.load @v : tensor<544xi8>
  %bv = util.global.load @v.bias : tensor<16xf32>
  %v = "llm.packed_matmul"(%x, %wv, %bv) {format = "q8_0", activations = "int8", rows = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 1, 0>} : (tensor<?x32xf32>, tensor<544xi8>, tensor<16xf32>) -> tensor<?x16xf32>
  %qh = tensor.expand_shape %q [[0], [1, 2]] output_shape [%T, 2, 16] : tensor<?x32xf32> into tensor<?x2x16xf32>
  %qt = "llm.rope"(%qh, %pos, %table) : (tensor<?x2x16xf32>, tensor<?xi32>, tensor<64x16xf32>) -> tensor<?x2x16xf32>
  %kh = tensor.expand_shape %k [[0], [1, 2]] output_shape [%T, 1, 16] : tensor<?x16xf32> into tensor<?x1x16xf32>
  %kt = "llm.rope"(%kh, %pos, %table) : (tensor<?x1x16xf32>, tensor<?xi32>, tensor<64x16xf32>) -> tensor<?x1x16xf32>
  %vh = tensor.expand_shape %v [[0], [1, 2]] output_shape [%T, 1, 16] : tensor<?x16xf32> into tensor<?x1x16xf32>
  %new = "llm.append_kv"(%kv, %kt, %vh, %slots) {llm.provider = "cpu_c"} : (tensor<?x2x1x16x16xf32>, tensor<?x1x16xf32>, tensor<?x1x16xf32>, tensor<?xi32>) -> tensor<?x2x1x16x16xf32>
  util.return %qt, %new : tensor<?x2x16xf32>, tensor<?x2x1x16x16xf32>
}

// Norms of the heads go into the op.
// CHECK-LABEL: util.func public @norms
// CHECK-NOT: llm.rms_norm
// CHECK: "llm.rope_append"({{.*}}) {eps = 1.000000e-05 : f64, {{.*}}operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 1, 1>
// CHECK-NOT: "llm.
util.func public @norms(%x: tensor<?x32xf32>, %x2: tensor<?x32xf32>, %pos: tensor<?xi32>, %pos2: tensor<?xi32>, %table: tensor<64x16xf32>, %slots: tensor<?xi32>, %kv: tensor<?x2x1x16x16xf32>, %qn: tensor<16xf32>, %kn: tensor<16xf32>) -> (tensor<?x2x16xf32>, tensor<?x2x1x16x16xf32>) {
  %c0 = arith.constant 0 : index
  %T = tensor.dim %x, %c0 : tensor<?x32xf32>
  %wq = util.global.load @q : tensor<1088xi8>
  %q = "llm.packed_matmul"(%x, %wq) {format = "q8_0", activations = "int8", rows = 32 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x32xf32>, tensor<1088xi8>) -> tensor<?x32xf32>
  %wk = util.global.load @k : tensor<544xi8>
  %k = "llm.packed_matmul"(%x, %wk) {format = "q8_0", activations = "int8", rows = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x32xf32>, tensor<544xi8>) -> tensor<?x16xf32>
  %wv = util.global.load @v : tensor<544xi8>
  %v = "llm.packed_matmul"(%x, %wv) {format = "q8_0", activations = "int8", rows = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x32xf32>, tensor<544xi8>) -> tensor<?x16xf32>
  %qh = tensor.expand_shape %q [[0], [1, 2]] output_shape [%T, 2, 16] : tensor<?x32xf32> into tensor<?x2x16xf32>
  %qf = tensor.collapse_shape %qh [[0, 1], [2]] : tensor<?x2x16xf32> into tensor<?x16xf32>
  %qr = "llm.rms_norm"(%qf, %qn) {eps = 1.0e-05 : f64} : (tensor<?x16xf32>, tensor<16xf32>) -> tensor<?x16xf32>
  %qm = tensor.expand_shape %qr [[0, 1], [2]] output_shape [%T, 2, 16] : tensor<?x16xf32> into tensor<?x2x16xf32>
  %qt = "llm.rope"(%qm, %pos, %table) : (tensor<?x2x16xf32>, tensor<?xi32>, tensor<64x16xf32>) -> tensor<?x2x16xf32>
  %kh = tensor.expand_shape %k [[0], [1, 2]] output_shape [%T, 1, 16] : tensor<?x16xf32> into tensor<?x1x16xf32>
  %kf = tensor.collapse_shape %kh [[0, 1], [2]] : tensor<?x1x16xf32> into tensor<?x16xf32>
  %kr = "llm.rms_norm"(%kf, %kn) {eps = 1.0e-05 : f64} : (tensor<?x16xf32>, tensor<16xf32>) -> tensor<?x16xf32>
  %km = tensor.expand_shape %kr [[0, 1], [2]] output_shape [%T, 1, 16] : tensor<?x16xf32> into tensor<?x1x16xf32>
  %kt = "llm.rope"(%km, %pos, %table) : (tensor<?x1x16xf32>, tensor<?xi32>, tensor<64x16xf32>) -> tensor<?x1x16xf32>
  %vh = tensor.expand_shape %v [[0], [1, 2]] output_shape [%T, 1, 16] : tensor<?x16xf32> into tensor<?x1x16xf32>
  %new = "llm.append_kv"(%kv, %kt, %vh, %slots) {llm.provider = "cpu_c"} : (tensor<?x2x1x16x16xf32>, tensor<?x1x16xf32>, tensor<?x1x16xf32>, tensor<?xi32>) -> tensor<?x2x1x16x16xf32>
  util.return %qt, %new : tensor<?x2x16xf32>, tensor<?x2x1x16x16xf32>
}

// CHECK-LABEL: util.func public @norm_of_q
// CHECK: "llm.rope_append"({{.*}}) {eps = 1.000000e-05 : f64, {{.*}}operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 1, 0>
// CHECK-NOT: "llm.
util.func public @norm_of_q(%x: tensor<?x32xf32>, %x2: tensor<?x32xf32>, %pos: tensor<?xi32>, %pos2: tensor<?xi32>, %table: tensor<64x16xf32>, %slots: tensor<?xi32>, %kv: tensor<?x2x1x16x16xf32>, %qn: tensor<16xf32>, %kn: tensor<16xf32>) -> (tensor<?x2x16xf32>, tensor<?x2x1x16x16xf32>) {
  %c0 = arith.constant 0 : index
  %T = tensor.dim %x, %c0 : tensor<?x32xf32>
  %wq = util.global.load @q : tensor<1088xi8>
  %q = "llm.packed_matmul"(%x, %wq) {format = "q8_0", activations = "int8", rows = 32 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x32xf32>, tensor<1088xi8>) -> tensor<?x32xf32>
  %wk = util.global.load @k : tensor<544xi8>
  %k = "llm.packed_matmul"(%x, %wk) {format = "q8_0", activations = "int8", rows = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x32xf32>, tensor<544xi8>) -> tensor<?x16xf32>
  %wv = util.global.load @v : tensor<544xi8>
  %v = "llm.packed_matmul"(%x, %wv) {format = "q8_0", activations = "int8", rows = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x32xf32>, tensor<544xi8>) -> tensor<?x16xf32>
  %qh = tensor.expand_shape %q [[0], [1, 2]] output_shape [%T, 2, 16] : tensor<?x32xf32> into tensor<?x2x16xf32>
  %qf = tensor.collapse_shape %qh [[0, 1], [2]] : tensor<?x2x16xf32> into tensor<?x16xf32>
  %qr = "llm.rms_norm"(%qf, %qn) {eps = 1.0e-05 : f64} : (tensor<?x16xf32>, tensor<16xf32>) -> tensor<?x16xf32>
  %qm = tensor.expand_shape %qr [[0, 1], [2]] output_shape [%T, 2, 16] : tensor<?x16xf32> into tensor<?x2x16xf32>
  %qt = "llm.rope"(%qm, %pos, %table) : (tensor<?x2x16xf32>, tensor<?xi32>, tensor<64x16xf32>) -> tensor<?x2x16xf32>
  %kh = tensor.expand_shape %k [[0], [1, 2]] output_shape [%T, 1, 16] : tensor<?x16xf32> into tensor<?x1x16xf32>
  %kt = "llm.rope"(%kh, %pos, %table) : (tensor<?x1x16xf32>, tensor<?xi32>, tensor<64x16xf32>) -> tensor<?x1x16xf32>
  %vh = tensor.expand_shape %v [[0], [1, 2]] output_shape [%T, 1, 16] : tensor<?x16xf32> into tensor<?x1x16xf32>
  %new = "llm.append_kv"(%kv, %kt, %vh, %slots) {llm.provider = "cpu_c"} : (tensor<?x2x1x16x16xf32>, tensor<?x1x16xf32>, tensor<?x1x16xf32>, tensor<?xi32>) -> tensor<?x2x1x16x16xf32>
  util.return %qt, %new : tensor<?x2x16xf32>, tensor<?x2x1x16x16xf32>
}

// One op has one eps.
// CHECK-LABEL: util.func public @two_norms
// CHECK-NOT: llm.rope_append
// CHECK: "llm.append_kv"
// CHECK-NOT: llm.rope_append
util.func public @two_norms(%x: tensor<?x32xf32>, %x2: tensor<?x32xf32>, %pos: tensor<?xi32>, %pos2: tensor<?xi32>, %table: tensor<64x16xf32>, %slots: tensor<?xi32>, %kv: tensor<?x2x1x16x16xf32>, %qn: tensor<16xf32>, %kn: tensor<16xf32>) -> (tensor<?x2x16xf32>, tensor<?x2x1x16x16xf32>) {
  %c0 = arith.constant 0 : index
  %T = tensor.dim %x, %c0 : tensor<?x32xf32>
  %wq = util.global.load @q : tensor<1088xi8>
  %q = "llm.packed_matmul"(%x, %wq) {format = "q8_0", activations = "int8", rows = 32 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x32xf32>, tensor<1088xi8>) -> tensor<?x32xf32>
  %wk = util.global.load @k : tensor<544xi8>
  %k = "llm.packed_matmul"(%x, %wk) {format = "q8_0", activations = "int8", rows = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x32xf32>, tensor<544xi8>) -> tensor<?x16xf32>
  %wv = util.global.load @v : tensor<544xi8>
  %v = "llm.packed_matmul"(%x, %wv) {format = "q8_0", activations = "int8", rows = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x32xf32>, tensor<544xi8>) -> tensor<?x16xf32>
  %qh = tensor.expand_shape %q [[0], [1, 2]] output_shape [%T, 2, 16] : tensor<?x32xf32> into tensor<?x2x16xf32>
  %qf = tensor.collapse_shape %qh [[0, 1], [2]] : tensor<?x2x16xf32> into tensor<?x16xf32>
  %qr = "llm.rms_norm"(%qf, %qn) {eps = 1.0e-05 : f64} : (tensor<?x16xf32>, tensor<16xf32>) -> tensor<?x16xf32>
  %qm = tensor.expand_shape %qr [[0, 1], [2]] output_shape [%T, 2, 16] : tensor<?x16xf32> into tensor<?x2x16xf32>
  %qt = "llm.rope"(%qm, %pos, %table) : (tensor<?x2x16xf32>, tensor<?xi32>, tensor<64x16xf32>) -> tensor<?x2x16xf32>
  %kh = tensor.expand_shape %k [[0], [1, 2]] output_shape [%T, 1, 16] : tensor<?x16xf32> into tensor<?x1x16xf32>
  %kf = tensor.collapse_shape %kh [[0, 1], [2]] : tensor<?x1x16xf32> into tensor<?x16xf32>
  %kr = "llm.rms_norm"(%kf, %kn) {eps = 1.0e-06 : f64} : (tensor<?x16xf32>, tensor<16xf32>) -> tensor<?x16xf32>
  %km = tensor.expand_shape %kr [[0, 1], [2]] output_shape [%T, 1, 16] : tensor<?x16xf32> into tensor<?x1x16xf32>
  %kt = "llm.rope"(%km, %pos, %table) : (tensor<?x1x16xf32>, tensor<?xi32>, tensor<64x16xf32>) -> tensor<?x1x16xf32>
  %vh = tensor.expand_shape %v [[0], [1, 2]] output_shape [%T, 1, 16] : tensor<?x16xf32> into tensor<?x1x16xf32>
  %new = "llm.append_kv"(%kv, %kt, %vh, %slots) {llm.provider = "cpu_c"} : (tensor<?x2x1x16x16xf32>, tensor<?x1x16xf32>, tensor<?x1x16xf32>, tensor<?xi32>) -> tensor<?x2x1x16x16xf32>
  util.return %qt, %new : tensor<?x2x16xf32>, tensor<?x2x1x16x16xf32>
}

// V in another format than Q and K, as in mixed files: nothing can stand in one matrix.
// CHECK-LABEL: util.func public @two_formats
// CHECK-NOT: llm.rope_append
// CHECK: "llm.append_kv"
// CHECK-NOT: llm.rope_append
util.func public @two_formats(%x: tensor<?x32xf32>, %x2: tensor<?x32xf32>, %pos: tensor<?xi32>, %pos2: tensor<?xi32>, %table: tensor<64x16xf32>, %slots: tensor<?xi32>, %kv: tensor<?x2x1x16x16xf32>) -> (tensor<?x2x16xf32>, tensor<?x2x1x16x16xf32>) {
  %c0 = arith.constant 0 : index
  %T = tensor.dim %x, %c0 : tensor<?x32xf32>
  %wq = util.global.load @q : tensor<1088xi8>
  %q = "llm.packed_matmul"(%x, %wq) {format = "q8_0", activations = "int8", rows = 32 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x32xf32>, tensor<1088xi8>) -> tensor<?x32xf32>
  %wk = util.global.load @k : tensor<544xi8>
  %k = "llm.packed_matmul"(%x, %wk) {format = "q8_0", activations = "int8", rows = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x32xf32>, tensor<544xi8>) -> tensor<?x16xf32>
  %wv = util.global.load @v4 : tensor<320xi8>
  %v = "llm.packed_matmul"(%x, %wv) {format = "q4_1", activations = "int8", rows = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x32xf32>, tensor<320xi8>) -> tensor<?x16xf32>
  %qh = tensor.expand_shape %q [[0], [1, 2]] output_shape [%T, 2, 16] : tensor<?x32xf32> into tensor<?x2x16xf32>
  %qt = "llm.rope"(%qh, %pos, %table) : (tensor<?x2x16xf32>, tensor<?xi32>, tensor<64x16xf32>) -> tensor<?x2x16xf32>
  %kh = tensor.expand_shape %k [[0], [1, 2]] output_shape [%T, 1, 16] : tensor<?x16xf32> into tensor<?x1x16xf32>
  %kt = "llm.rope"(%kh, %pos, %table) : (tensor<?x1x16xf32>, tensor<?xi32>, tensor<64x16xf32>) -> tensor<?x1x16xf32>
  %vh = tensor.expand_shape %v [[0], [1, 2]] output_shape [%T, 1, 16] : tensor<?x16xf32> into tensor<?x1x16xf32>
  %new = "llm.append_kv"(%kv, %kt, %vh, %slots) {llm.provider = "cpu_c"} : (tensor<?x2x1x16x16xf32>, tensor<?x1x16xf32>, tensor<?x1x16xf32>, tensor<?xi32>) -> tensor<?x2x1x16x16xf32>
  util.return %qt, %new : tensor<?x2x16xf32>, tensor<?x2x1x16x16xf32>
}

// CHECK-LABEL: util.func public @two_inputs
// CHECK-NOT: llm.rope_append
// CHECK: "llm.append_kv"
// CHECK-NOT: llm.rope_append
util.func public @two_inputs(%x: tensor<?x32xf32>, %x2: tensor<?x32xf32>, %pos: tensor<?xi32>, %pos2: tensor<?xi32>, %table: tensor<64x16xf32>, %slots: tensor<?xi32>, %kv: tensor<?x2x1x16x16xf32>) -> (tensor<?x2x16xf32>, tensor<?x2x1x16x16xf32>) {
  %c0 = arith.constant 0 : index
  %T = tensor.dim %x, %c0 : tensor<?x32xf32>
  %wq = util.global.load @q : tensor<1088xi8>
  %q = "llm.packed_matmul"(%x, %wq) {format = "q8_0", activations = "int8", rows = 32 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x32xf32>, tensor<1088xi8>) -> tensor<?x32xf32>
  %wk = util.global.load @k : tensor<544xi8>
  %k = "llm.packed_matmul"(%x, %wk) {format = "q8_0", activations = "int8", rows = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x32xf32>, tensor<544xi8>) -> tensor<?x16xf32>
  %wv = util.global.load @v : tensor<544xi8>
  %v = "llm.packed_matmul"(%x2, %wv) {format = "q8_0", activations = "int8", rows = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x32xf32>, tensor<544xi8>) -> tensor<?x16xf32>
  %qh = tensor.expand_shape %q [[0], [1, 2]] output_shape [%T, 2, 16] : tensor<?x32xf32> into tensor<?x2x16xf32>
  %qt = "llm.rope"(%qh, %pos, %table) : (tensor<?x2x16xf32>, tensor<?xi32>, tensor<64x16xf32>) -> tensor<?x2x16xf32>
  %kh = tensor.expand_shape %k [[0], [1, 2]] output_shape [%T, 1, 16] : tensor<?x16xf32> into tensor<?x1x16xf32>
  %kt = "llm.rope"(%kh, %pos, %table) : (tensor<?x1x16xf32>, tensor<?xi32>, tensor<64x16xf32>) -> tensor<?x1x16xf32>
  %vh = tensor.expand_shape %v [[0], [1, 2]] output_shape [%T, 1, 16] : tensor<?x16xf32> into tensor<?x1x16xf32>
  %new = "llm.append_kv"(%kv, %kt, %vh, %slots) {llm.provider = "cpu_c"} : (tensor<?x2x1x16x16xf32>, tensor<?x1x16xf32>, tensor<?x1x16xf32>, tensor<?xi32>) -> tensor<?x2x1x16x16xf32>
  util.return %qt, %new : tensor<?x2x16xf32>, tensor<?x2x1x16x16xf32>
}

// Queries and keys of other positions are turned by other angles.
// CHECK-LABEL: util.func public @two_places
// CHECK-NOT: llm.rope_append
// CHECK: "llm.append_kv"
// CHECK-NOT: llm.rope_append
util.func public @two_places(%x: tensor<?x32xf32>, %x2: tensor<?x32xf32>, %pos: tensor<?xi32>, %pos2: tensor<?xi32>, %table: tensor<64x16xf32>, %slots: tensor<?xi32>, %kv: tensor<?x2x1x16x16xf32>) -> (tensor<?x2x16xf32>, tensor<?x2x1x16x16xf32>) {
  %c0 = arith.constant 0 : index
  %T = tensor.dim %x, %c0 : tensor<?x32xf32>
  %wq = util.global.load @q : tensor<1088xi8>
  %q = "llm.packed_matmul"(%x, %wq) {format = "q8_0", activations = "int8", rows = 32 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x32xf32>, tensor<1088xi8>) -> tensor<?x32xf32>
  %wk = util.global.load @k : tensor<544xi8>
  %k = "llm.packed_matmul"(%x, %wk) {format = "q8_0", activations = "int8", rows = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x32xf32>, tensor<544xi8>) -> tensor<?x16xf32>
  %wv = util.global.load @v : tensor<544xi8>
  %v = "llm.packed_matmul"(%x, %wv) {format = "q8_0", activations = "int8", rows = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x32xf32>, tensor<544xi8>) -> tensor<?x16xf32>
  %qh = tensor.expand_shape %q [[0], [1, 2]] output_shape [%T, 2, 16] : tensor<?x32xf32> into tensor<?x2x16xf32>
  %qt = "llm.rope"(%qh, %pos, %table) : (tensor<?x2x16xf32>, tensor<?xi32>, tensor<64x16xf32>) -> tensor<?x2x16xf32>
  %kh = tensor.expand_shape %k [[0], [1, 2]] output_shape [%T, 1, 16] : tensor<?x16xf32> into tensor<?x1x16xf32>
  %kt = "llm.rope"(%kh, %pos2, %table) : (tensor<?x1x16xf32>, tensor<?xi32>, tensor<64x16xf32>) -> tensor<?x1x16xf32>
  %vh = tensor.expand_shape %v [[0], [1, 2]] output_shape [%T, 1, 16] : tensor<?x16xf32> into tensor<?x1x16xf32>
  %new = "llm.append_kv"(%kv, %kt, %vh, %slots) {llm.provider = "cpu_c"} : (tensor<?x2x1x16x16xf32>, tensor<?x1x16xf32>, tensor<?x1x16xf32>, tensor<?xi32>) -> tensor<?x2x1x16x16xf32>
  util.return %qt, %new : tensor<?x2x16xf32>, tensor<?x2x1x16x16xf32>
}

// CHECK-LABEL: util.func public @portable_pages
// CHECK-NOT: llm.rope_append
// CHECK: "llm.append_kv"
// CHECK-NOT: llm.rope_append
util.func public @portable_pages(%x: tensor<?x32xf32>, %x2: tensor<?x32xf32>, %pos: tensor<?xi32>, %pos2: tensor<?xi32>, %table: tensor<64x16xf32>, %slots: tensor<?xi32>, %kv: tensor<?x2x1x16x16xf32>) -> (tensor<?x2x16xf32>, tensor<?x2x1x16x16xf32>) {
  %c0 = arith.constant 0 : index
  %T = tensor.dim %x, %c0 : tensor<?x32xf32>
  %wq = util.global.load @q : tensor<1088xi8>
  %q = "llm.packed_matmul"(%x, %wq) {format = "q8_0", activations = "int8", rows = 32 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x32xf32>, tensor<1088xi8>) -> tensor<?x32xf32>
  %wk = util.global.load @k : tensor<544xi8>
  %k = "llm.packed_matmul"(%x, %wk) {format = "q8_0", activations = "int8", rows = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x32xf32>, tensor<544xi8>) -> tensor<?x16xf32>
  %wv = util.global.load @v : tensor<544xi8>
  %v = "llm.packed_matmul"(%x, %wv) {format = "q8_0", activations = "int8", rows = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x32xf32>, tensor<544xi8>) -> tensor<?x16xf32>
  %qh = tensor.expand_shape %q [[0], [1, 2]] output_shape [%T, 2, 16] : tensor<?x32xf32> into tensor<?x2x16xf32>
  %qt = "llm.rope"(%qh, %pos, %table) : (tensor<?x2x16xf32>, tensor<?xi32>, tensor<64x16xf32>) -> tensor<?x2x16xf32>
  %kh = tensor.expand_shape %k [[0], [1, 2]] output_shape [%T, 1, 16] : tensor<?x16xf32> into tensor<?x1x16xf32>
  %kt = "llm.rope"(%kh, %pos, %table) : (tensor<?x1x16xf32>, tensor<?xi32>, tensor<64x16xf32>) -> tensor<?x1x16xf32>
  %vh = tensor.expand_shape %v [[0], [1, 2]] output_shape [%T, 1, 16] : tensor<?x16xf32> into tensor<?x1x16xf32>
  %new = "llm.append_kv"(%kv, %kt, %vh, %slots) {llm.provider = "portable"} : (tensor<?x2x1x16x16xf32>, tensor<?x1x16xf32>, tensor<?x1x16xf32>, tensor<?xi32>) -> tensor<?x2x1x16x16xf32>
  util.return %qt, %new : tensor<?x2x16xf32>, tensor<?x2x1x16x16xf32>
}

// Keys that somebody else reads too are computed for him apart.
// CHECK-LABEL: util.func public @k_is_read_elsewhere
// CHECK: %[[K:.*]] = "llm.rope"
// CHECK: %[[Y:.*]]:2 = "llm.rope_append"
// CHECK: util.return %[[Y]]#0, %[[Y]]#1, %[[K]]
util.func public @k_is_read_elsewhere(%x: tensor<?x32xf32>, %x2: tensor<?x32xf32>, %pos: tensor<?xi32>, %pos2: tensor<?xi32>, %table: tensor<64x16xf32>, %slots: tensor<?xi32>, %kv: tensor<?x2x1x16x16xf32>) -> (tensor<?x2x16xf32>, tensor<?x2x1x16x16xf32>, tensor<?x1x16xf32>) {
  %c0 = arith.constant 0 : index
  %T = tensor.dim %x, %c0 : tensor<?x32xf32>
  %wq = util.global.load @q : tensor<1088xi8>
  %q = "llm.packed_matmul"(%x, %wq) {format = "q8_0", activations = "int8", rows = 32 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x32xf32>, tensor<1088xi8>) -> tensor<?x32xf32>
  %wk = util.global.load @k : tensor<544xi8>
  %k = "llm.packed_matmul"(%x, %wk) {format = "q8_0", activations = "int8", rows = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x32xf32>, tensor<544xi8>) -> tensor<?x16xf32>
  %wv = util.global.load @v : tensor<544xi8>
  %v = "llm.packed_matmul"(%x, %wv) {format = "q8_0", activations = "int8", rows = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>} : (tensor<?x32xf32>, tensor<544xi8>) -> tensor<?x16xf32>
  %qh = tensor.expand_shape %q [[0], [1, 2]] output_shape [%T, 2, 16] : tensor<?x32xf32> into tensor<?x2x16xf32>
  %qt = "llm.rope"(%qh, %pos, %table) : (tensor<?x2x16xf32>, tensor<?xi32>, tensor<64x16xf32>) -> tensor<?x2x16xf32>
  %kh = tensor.expand_shape %k [[0], [1, 2]] output_shape [%T, 1, 16] : tensor<?x16xf32> into tensor<?x1x16xf32>
  %kt = "llm.rope"(%kh, %pos, %table) : (tensor<?x1x16xf32>, tensor<?xi32>, tensor<64x16xf32>) -> tensor<?x1x16xf32>
  %vh = tensor.expand_shape %v [[0], [1, 2]] output_shape [%T, 1, 16] : tensor<?x16xf32> into tensor<?x1x16xf32>
  %new = "llm.append_kv"(%kv, %kt, %vh, %slots) {llm.provider = "cpu_c"} : (tensor<?x2x1x16x16xf32>, tensor<?x1x16xf32>, tensor<?x1x16xf32>, tensor<?xi32>) -> tensor<?x2x1x16x16xf32>
  util.return %qt, %new, %kt : tensor<?x2x16xf32>, tensor<?x2x1x16x16xf32>, tensor<?x1x16xf32>
}
