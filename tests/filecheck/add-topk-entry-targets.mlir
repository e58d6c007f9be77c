// PASSES: add-topk-entry{k=8,target=rocm:gfx942}

// Of targets other than CPUs, whoever computes the logits, llm.topk gets a provider of its own.
// CHECK-LABEL: util.func public @step_topk$async
// CHECK: "llm.topk"(%{{.*}}) {k = 8 : i64, llm.provider = "hip"} : (tensor<?x64xf32>) -> (tensor<?x8xf32>, tensor<?x8xi32>, tensor<?xf32>)
// CHECK-LABEL: util.func public @step_topk(
util.func public @step$async(%view: !hal.buffer_view, %head: !hal.buffer_view, %wait: !hal.fence, %signal: !hal.fence) -> !hal.buffer_view {
  %c0 = arith.constant 0 : index
  %n = hal.buffer_view.dim<%view : !hal.buffer_view>[0] : index
  %x = hal.tensor.import wait(%wait) => %view : !hal.buffer_view -> tensor<?x32xf32>{%n}
  %w = hal.tensor.import wait(%wait) => %head : !hal.buffer_view -> tensor<64x32xf32>
  %l = "llm.linear"(%x, %w) {activations = "f32", llm.provider = "portable", operandSegmentSizes = array<i32: 1, 1, 0>} : (tensor<?x32xf32>, tensor<64x32xf32>) -> tensor<?x64xf32>
  %y = hal.tensor.barrier join(%l : tensor<?x64xf32>) => %signal : !hal.fence
  %m = tensor.dim %y, %c0 : tensor<?x64xf32>
  %out = hal.tensor.export %y : tensor<?x64xf32>{%m} -> !hal.buffer_view
  util.return %out : !hal.buffer_view
}
util.func public @step(%view: !hal.buffer_view, %head: !hal.buffer_view, %wait: !hal.fence, %signal: !hal.fence) -> !hal.buffer_view {
  %y = util.call @step$async(%view, %head, %wait, %signal) : (!hal.buffer_view, !hal.buffer_view, !hal.fence, !hal.fence) -> !hal.buffer_view
  util.return %y : !hal.buffer_view
}
