// Kernels on the rows of a matrix: a workgroup is 256 threads and has a row to itself.
//
//   llmir_rms_norm    y[r, d] = x[r, d] / sqrt(mean_d(x[r, :]²) + eps) weight[d]
//   llmir_gated_mul   y[r, f] = gate sigmoid(gate) up, or GELU's form; see numbers.h
//   llmir_argmax      ids[r] = argmax_n x[r, n], the first of equals; -1 where a number of the row
//                     is NaN or infinity, or all are -infinity
//
// ABI, as IREE calls kernels: a pointer for each tensor, those read before those written, then
// 32-bit numbers; a float is its bits.
//
//   llmir_rms_norm(x f32[R, D], weight f32[D], out y f32[R, D], D, eps)         grid (R)
//   llmir_gated_mul(gate f32[R, F], up f32[R, F], out y f32[R, F], F, kind)     grid (R)
//   llmir_argmax(x f32[R, N], out ids i32[R], N)                                grid (R)
//
// A row's sum has one order, whatever R is: thread i adds columns i, i + 256, …, then the warps'
// lanes, then the warps.
#include "numbers.h"
#include "group_sum.h"

KERNEL(256)
llmir_rms_norm(const float *x, const float *weight, float *y, u32 columns, u32 eps_bits) {
  const u64 at = (u64)group_x() * columns;
  const float inverse = inverse_root_mean(x + at, columns, float_of(eps_bits));
  for (u32 d = thread_id(); d < columns; d += kGroup) y[at + d] = x[at + d] * inverse * weight[d];
}

KERNEL(256)
llmir_gated_mul(const float *gate, const float *up, float *y, u32 columns, u32 kind) {
  const u64 at = (u64)group_x() * columns;
  for (u32 f = thread_id(); f < columns; f += kGroup) y[at + f] = gated(kind, gate[at + f], up[at + f]);
}

KERNEL(256)
llmir_argmax(const float *x, int *ids, u32 columns) {
  SHARED float best_of[kGroup / kWarp];
  SHARED u32 at_of[kGroup / kWarp], bad_of[kGroup / kWarp];
  const float *row = x + (u64)group_x() * columns;
  float best = -__builtin_huge_valf();
  u32 at = ~0u, bad = 0;
  for (u32 n = thread_id(); n < columns; n += kGroup) {
    const float found = row[n];
    bad |= !(found < __builtin_huge_valf());
    if (found > best) best = found, at = n;
  }
  auto take = [&](float other, u32 other_at, u32 other_bad) {
    bad |= other_bad;
    if (other > best || (other == best && other_at < at)) best = other, at = other_at;
  };
  for (u32 mask = kWarp / 2; mask; mask /= 2)
    take(from_lane_xor(best, mask), from_lane_xor(at, mask), from_lane_xor(bad, mask));
  const u32 warp = thread_id() / kWarp;
  if (thread_id() % kWarp == 0) best_of[warp] = best, at_of[warp] = at, bad_of[warp] = bad;
  sync_group();
  if (thread_id() != 0) return;
  for (u32 i = 1; i < kGroup / kWarp; i++) take(best_of[i], at_of[i], bad_of[i]);
  ids[group_x()] = bad || at == ~0u ? -1 : (int)at;
}
