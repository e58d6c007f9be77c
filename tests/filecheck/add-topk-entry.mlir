// PASSES: add-topk-entry{k=8}

// step_topk takes what step takes, and gives the largest logits, their ids and the row's weight.
// CHECK-LABEL: util.func public @step$async
// CHECK-NOT: llm.topk
// CHECK-LABEL: util.func public @step(
// CHECK: util.call @step$async
// CHECK-LABEL: util.func public @step_topk$async
// CHECK-SAME: -> (!hal.buffer_view, !hal.buffer_view, !hal.buffer_view)
// CHECK: %[[TOP:.*]]:3 = "llm.topk"(%{{.*}}) {k = 8 : i64, llm.provider = "portable"} : (tensor<?x64xf32>) -> (tensor<?x8xf32>, tensor<?x8xi32>, tensor<?xf32>)
// CHECK: %[[DONE:.*]]:3 = hal.tensor.barrier join(%[[TOP]]#0, %[[TOP]]#1, %[[TOP]]#2 : tensor<?x8xf32>, tensor<?x8xi32>, tensor<?xf32>)
// CHECK: %[[A:.*]] = hal.tensor.export %[[DONE]]#0 : tensor<?x8xf32>{{.*}} -> !hal.buffer_view
// CHECK: %[[B:.*]] = hal.tensor.export %[[DONE]]#1 : tensor<?x8xi32>{{.*}} -> !hal.buffer_view
// CHECK: %[[C:.*]] = hal.tensor.export %[[DONE]]#2 : tensor<?xf32>{{.*}} -> !hal.buffer_view
// CHECK-NOT: hal.tensor.export
// CHECK: util.return %[[A]], %[[B]], %[[C]]
// CHECK-LABEL: util.func public @step_topk(
// CHECK: %[[VIEWS:.*]]:3 = util.call @step_topk$async
// CHECK: util.return %[[VIEWS]]#0, %[[VIEWS]]#1, %[[VIEWS]]#2
util.func public @step$async(%view: !hal.buffer_view, %head: !hal.buffer_view, %wait: !hal.fence, %signal: !hal.fence) -> !hal.buffer_view {
  %c0 = arith.constant 0 : index
  %n = hal.buffer_view.dim<%view : !hal.buffer_view>[0] : index
  %x = hal.tensor.import wait(%wait) => %view : !hal.buffer_view -> tensor<?x32xf32>{%n}
  %w = hal.tensor.import wait(%wait) => %head : !hal.buffer_view -> tensor<64x32xf32>
  %l = "llm.linear"(%x, %w) {activations = "f32", llm.provider = "cpu_c", operandSegmentSizes = array<i32: 1, 1, 0>} : (tensor<?x32xf32>, tensor<64x32xf32>) -> tensor<?x64xf32>
  %y = hal.tensor.barrier join(%l : tensor<?x64xf32>) => %signal : !hal.fence
  %m = tensor.dim %y, %c0 : tensor<?x64xf32>
  %out = hal.tensor.export %y : tensor<?x64xf32>{%m} -> !hal.buffer_view
  util.return %out : !hal.buffer_view
}
util.func public @step(%view: !hal.buffer_view, %head: !hal.buffer_view, %wait: !hal.fence, %signal: !hal.fence) -> !hal.buffer_view {
  %y = util.call @step$async(%view, %head, %wait, %signal) : (!hal.buffer_view, !hal.buffer_view, !hal.fence, !hal.fence) -> !hal.buffer_view
  util.return %y : !hal.buffer_view
}
