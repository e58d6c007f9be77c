// PASSES: add-greedy-entry

// step_greedy takes what step takes, and gives the ids of the largest logits.
// CHECK-LABEL: util.func public @step$async
// CHECK-NOT: llm.argmax
// CHECK-LABEL: util.func public @step(
// CHECK: util.call @step$async
// CHECK-LABEL: util.func public @step_greedy$async
// CHECK: %[[IDS:.*]] = "llm.argmax"(%{{.*}}) : (tensor<?x64xf32>) -> tensor<?xi32>
// CHECK: %[[DONE:.*]] = hal.tensor.barrier join(%[[IDS]] : tensor<?xi32>)
// CHECK: hal.tensor.export %[[DONE]] : tensor<?xi32>{{.*}} -> !hal.buffer_view
// CHECK-LABEL: util.func public @step_greedy(
// CHECK: util.call @step_greedy$async
util.func public @step$async(%view: !hal.buffer_view, %wait: !hal.fence, %signal: !hal.fence) -> !hal.buffer_view {
  %c0 = arith.constant 0 : index
  %n = hal.buffer_view.dim<%view : !hal.buffer_view>[0] : index
  %x = hal.tensor.import wait(%wait) => %view : !hal.buffer_view -> tensor<?x64xf32>{%n}
  %y = hal.tensor.barrier join(%x : tensor<?x64xf32>) => %signal : !hal.fence
  %m = tensor.dim %y, %c0 : tensor<?x64xf32>
  %out = hal.tensor.export %y : tensor<?x64xf32>{%m} -> !hal.buffer_view
  util.return %out : !hal.buffer_view
}
util.func public @step(%view: !hal.buffer_view, %wait: !hal.fence, %signal: !hal.fence) -> !hal.buffer_view {
  %y = util.call @step$async(%view, %wait, %signal) : (!hal.buffer_view, !hal.fence, !hal.fence) -> !hal.buffer_view
  util.return %y : !hal.buffer_view
}
