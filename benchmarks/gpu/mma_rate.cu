// Nothing but mma.sync: the most that kernels of Ampere's instruction can reach on a newer chip.
//
// Eight products of a warp are under way at a time, each adding to what it made before; numbers
// near one, for products of zeros take less power and so a higher clock.
#include "device.h"

constexpr u32 kChains = 8;

KERNEL(256) llmir_mma_rate(float *y, u32 rounds) {
  const u32 lane = thread_id();
  u32 a[4], b[2];
  float c[kChains][4];
  UNROLL for (u32 i = 0; i < 4; i++) a[i] = 0x3f803f80u ^ (lane * 0x00050003u + i & 0x003f003fu);
  UNROLL for (u32 i = 0; i < 2; i++) b[i] = 0x3f803f80u ^ (lane * 0x00030007u + i & 0x003f003fu);
  UNROLL for (u32 k = 0; k < kChains; k++)
    UNROLL for (u32 i = 0; i < 4; i++) c[k][i] = (float)k;
  ROLLED for (u32 round = 0; round < rounds; round++)
    UNROLL for (u32 k = 0; k < kChains; k++) multiply_16x8x16(c[k], a, b);
  float sum = 0;
  UNROLL for (u32 k = 0; k < kChains; k++)
    UNROLL for (u32 i = 0; i < 4; i++) sum += c[k][i];
  y[group_x() * 256 + lane] = sum;
}
