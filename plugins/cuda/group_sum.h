// Sums over a workgroup of 256 threads.
#ifndef LLMIR_GROUP_SUM_H
#define LLMIR_GROUP_SUM_H

#include "device.h"

constexpr u32 kGroup = 256;

// The sum of every thread's x, the same in all of them.  All threads must call it.
INLINE float group_sum(float x) {
  SHARED float of_warp[kGroup / kWarp];
  const u32 thread = thread_id();
  x = warp_sum(x);
  if (thread % kWarp == 0) of_warp[thread / kWarp] = x;
  sync_group();
  float sum = 0;
  for (u32 i = 0; i < kGroup / kWarp; i++) sum += of_warp[i];
  sync_group();
  return sum;
}

// 1 / sqrt(mean(x²) + eps) of a row.
INLINE float inverse_root_mean(const float *x, u32 columns, float eps) {
  float squares = 0;
  for (u32 d = thread_id(); d < columns; d += kGroup) squares = __builtin_fmaf(x[d], x[d], squares);
  const float mean = group_sum(squares) / (float)columns;
  return 1.0f / __builtin_sqrtf(mean + eps);
}

#endif
