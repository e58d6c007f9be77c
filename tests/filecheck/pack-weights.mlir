// PASSES: select-providers{target=cpu:x86-64-v3},pack-weights

// A matmul that the kernels compute reads one packed parameter: one of its kind for all who
// read the matrix.
// CHECK: util.global private @__packed.w.packed {llm.packed = "{{[{]}}\22name\22: \22w.packed\22, \22format\22: \22q4_1\22, \22sources\22: [\22w\22], \22in_turn\22: false}"} = #flow.parameter.named<"model"::"w.packed"> : tensor<640xi8>
util.global private @w.quants = #flow.parameter.named<"model"::"w.quants"> : tensor<16x2x16xi8>
util.global private @w.scales = #flow.parameter.named<"model"::"w.scales"> : tensor<16x2xf32>
util.global private @w.mins = #flow.parameter.named<"model"::"w.mins"> : tensor<16x2xf32>

// CHECK-LABEL: util.func public @matmul
// CHECK-SAME: %[[X:.*]]: tensor<?x64xf32>
// CHECK: %[[W:.*]] = util.global.load @__packed.w.packed : tensor<640xi8>
// CHECK: "llm.packed_matmul"(%[[X]], %[[W]]) {activations = "int16", eps = 0.000000e+00 : f64,
// CHECK-SAME: format = "q4_1", gated = "", llm.provider = "cpu_c",
// CHECK-SAME: operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, rows = 16 : i64}
util.func public @matmul(%x: tensor<?x64xf32>) -> tensor<?x16xf32> {
  %q = util.global.load @w.quants : tensor<16x2x16xi8>
  %s = util.global.load @w.scales : tensor<16x2xf32>
  %m = util.global.load @w.mins : tensor<16x2xf32>
  %y = "llm.quantized_matmul"(%x, %q, %s, %m) {bits = 4 : i64, group_size = 32 : i64, zero_point = 0 : i64, format = "q4_1", activations = "int16+", operandSegmentSizes = array<i32: 1, 1, 1, 1, 0>} : (tensor<?x64xf32>, tensor<16x2x16xi8>, tensor<16x2xf32>, tensor<16x2xf32>) -> tensor<?x16xf32>
  util.return %y : tensor<?x16xf32>
}

// CHECK-LABEL: util.func public @table
// CHECK: %[[W:.*]] = util.global.load @__packed.w.packed
// CHECK: "llm.packed_embedding"(%{{.*}}, %[[W]]) {cols = 64 : i64, format = "q4_1", llm.provider = "cpu_c", rows = 16 : i64}
// CHECK-SAME: (tensor<?xi32>, tensor<640xi8>) -> tensor<?x64xf32>
util.func public @table(%ids: tensor<?xi32>) -> tensor<?x64xf32> {
  %q = util.global.load @w.quants : tensor<16x2x16xi8>
  %s = util.global.load @w.scales : tensor<16x2xf32>
  %m = util.global.load @w.mins : tensor<16x2xf32>
  %y = "llm.quantized_embedding"(%ids, %q, %s, %m) {bits = 4 : i64, group_size = 32 : i64, zero_point = 0 : i64, format = "q4_1", operandSegmentSizes = array<i32: 1, 1, 1, 1>} : (tensor<?xi32>, tensor<16x2x16xi8>, tensor<16x2xf32>, tensor<16x2xf32>) -> tensor<?x64xf32>
  util.return %y : tensor<?x64xf32>
}

// Planes that no packed layout can hold stay as they are.
// CHECK-LABEL: util.func public @portable
// CHECK-NOT: llm.packed
// CHECK-COUNT-2: "llm.quantized_matmul"({{.*}}llm.provider = "portable", llm.refused = "cpu_c: {{[^"]+}}"
// CHECK-NOT: llm.packed
// CHECK: util.return
util.func public @portable(%x: tensor<?x64xf32>) -> (tensor<?x16xf32>, tensor<?x16xf32>) {
  %q = util.global.load @w.quants : tensor<16x2x16xi8>
  %s = util.global.load @w.scales : tensor<16x2xf32>
  %m = util.global.load @w.mins : tensor<16x2xf32>
  %a = "llm.quantized_matmul"(%x, %q, %s, %m) {bits = 4 : i64, group_size = 32 : i64, zero_point = 3 : i64, format = "", activations = "f32", operandSegmentSizes = array<i32: 1, 1, 1, 1, 0>} : (tensor<?x64xf32>, tensor<16x2x16xi8>, tensor<16x2xf32>, tensor<16x2xf32>) -> tensor<?x16xf32>
  %b = "llm.quantized_matmul"(%x, %q, %s, %m) {bits = 4 : i64, group_size = 32 : i64, zero_point = 3 : i64, format = "", activations = "int8+", operandSegmentSizes = array<i32: 1, 1, 1, 1, 0>} : (tensor<?x64xf32>, tensor<16x2x16xi8>, tensor<16x2xf32>, tensor<16x2xf32>) -> tensor<?x16xf32>
  util.return %a, %b : tensor<?x16xf32>, tensor<?x16xf32>
}

// Float weights are packed as they are stored.
// CHECK-LABEL: util.func public @floats
// CHECK: %[[T:.*]] = util.global.load @__packed.t.packed : tensor<2048xi8>
// CHECK: "llm.packed_embedding"(%{{.*}}, %[[T]]) {cols = 64 : i64, format = "bf16", llm.provider = "cpu_c", rows = 16 : i64}
// CHECK: "llm.packed_matmul"({{.*}}) {activations = "bf16", eps = 0.000000e+00 : f64,
// CHECK-SAME: format = "bf16", gated = "", llm.provider = "cpu_c"
util.global private @t = #flow.parameter.named<"model"::"t.weight"> : tensor<16x64xbf16>
util.func public @floats(%ids: tensor<?xi32>) -> tensor<?x16xf32> {
  %t = util.global.load @t : tensor<16x64xbf16>
  %x = "llm.embedding"(%ids, %t) : (tensor<?xi32>, tensor<16x64xbf16>) -> tensor<?x64xf32>
  %y = "llm.linear"(%x, %t) {activations = "bf16+", operandSegmentSizes = array<i32: 1, 1, 0>} : (tensor<?x64xf32>, tensor<16x64xbf16>) -> tensor<?x16xf32>
  util.return %y : tensor<?x16xf32>
}
