// The machine of device.h, emulated on a CPU: for tests, which run a kernel's own source this way.
//
// A workgroup's threads are fibers of one operating-system thread (emulated.cc).  A fiber runs
// until it comes to a point where its workgroup or its warp must meet, and the next goes on.  What
// is emulated is the arithmetic and the indexing, by each instruction's documentation; neither
// speed, nor when memory becomes visible, nor the last bits of approximate instructions.
#ifndef LLMIR_EMULATED_H
#define LLMIR_EMULATED_H

#define KERNEL(threads) extern "C" void
#define SHARED static
#define SHARED_POINTER

struct EmulatedThread {
  u32 id, x, y, z;
  u32 shown[8];  // what the other lanes of the warp may read
};
extern "C" EmulatedThread *emulated_thread;  // the one that runs
extern "C" void emulated_sync_group();
extern "C" void emulated_sync_warp();
extern "C" const EmulatedThread *emulated_lane(u32 lane);  // of the warp of the one that runs

INLINE u32 thread_id() { return emulated_thread->id; }
INLINE u32 group_x() { return emulated_thread->x; }
INLINE u32 group_y() { return emulated_thread->y; }
INLINE u32 group_z() { return emulated_thread->z; }
INLINE void sync_group() { emulated_sync_group(); }

INLINE u32 from_lane_xor(u32 x, u32 mask) {
  emulated_thread->shown[0] = x;
  emulated_sync_warp();
  const u32 y = emulated_lane((thread_id() % kWarp) ^ mask)->shown[0];
  emulated_sync_warp();
  return y;
}
INLINE u32 add_shared(u32 *to, u32 x) {
  const u32 y = *to;
  *to += x;
  return y;
}
INLINE float exp2_fast(float x) { return __builtin_exp2f(x); }
INLINE u32 pick_bytes(u32 a, u32 b, u32 selector) {
  const u64 bytes = a | (u64)b << 32;
  u32 y = 0;
  for (u32 i = 0; i < 4; i++) y |= (u32)(bytes >> (selector >> 4 * i & 7) * 8 & 255) << 8 * i;
  return y;
}
INLINE u32 round_to_bf16(float x) {  // of a finite number
  const u32 bits = bits_of(x);
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
INLINE u32 add_bf16x2(u32 x, u32 y) {
  const float low = float_of(x << 16) + float_of(y << 16);
  const float high = float_of(x & 0xffff0000) + float_of(y & 0xffff0000);
  return round_to_bf16(low) | round_to_bf16(high) << 16;
}
// By the fragments that PTX's manual draws for mma.m16n8k16; see device.h.  Products are exact in
// float32 and are added to c one after the other; the matrix unit's own order is not documented.
INLINE void multiply_16x8x16(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  const u32 lane = thread_id() % kWarp, group = lane / 4, in_group = lane % 4;
  for (u32 i = 0; i < 4; i++) emulated_thread->shown[i] = a[i];
  for (u32 i = 0; i < 2; i++) emulated_thread->shown[4 + i] = b[i];
  emulated_sync_warp();
  for (u32 at = 0; at < 4; at++) {
    const u32 row = group + at / 2 * 8, column = 2 * in_group + at % 2;
    for (u32 k = 0; k < 16; k++) {
      const u32 holder = k % 8 / 2, register_of_b = k / 8, half = k % 2 * 16;
      const u32 x = emulated_lane(row % 8 * 4 + holder)->shown[row / 8 + 2 * register_of_b];
      const u32 y = emulated_lane(column * 4 + holder)->shown[4 + register_of_b];
      c[at] += float_of((x >> half) << 16) * float_of((y >> half) << 16);
    }
  }
  emulated_sync_warp();
}
INLINE void copy_16_async(void *to, const void *from, bool is_there) {
  for (u32 i = 0; i < 16; i++) ((u8 *)to)[i] = is_there ? ((const u8 *)from)[i] : 0;
}
INLINE void commit_copies() {}
template <int kPending>
INLINE void wait_for_copies() {}

#endif
