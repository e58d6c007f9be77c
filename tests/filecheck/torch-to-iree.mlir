// PASSES: raise-torch-llm,torch-to-iree

// torch's own ops become linalg; raised llm ops pass through on builtin tensors, and
// the casts around them are gone.
// CHECK-LABEL: util.func public @f$async
// CHECK: %[[N:.*]] = "llm.rms_norm"
// CHECK-SAME: tensor<?x64xf32>
// CHECK-NOT: torch
// CHECK: linalg.generic {{.*}}ins(%{{.*}}, %[[N]] :
func.func @f(%x: !torch.vtensor<[?,64],f32>, %w: !torch.vtensor<[64],f32>) -> !torch.vtensor<[?,64],f32> {
  %eps = torch.constant.float 1.000000e-05
  %y = torch.operator "torch.llm.rms_norm"(%x, %w, %eps) : (!torch.vtensor<[?,64],f32>, !torch.vtensor<[64],f32>, !torch.float) -> !torch.vtensor<[?,64],f32>
  %one = torch.constant.int 1
  %z = torch.aten.add.Tensor %x, %y, %one : !torch.vtensor<[?,64],f32>, !torch.vtensor<[?,64],f32>, !torch.int -> !torch.vtensor<[?,64],f32>
  return %z : !torch.vtensor<[?,64],f32>
}
