// What the kernels ask of the machine they run on: threads, shared memory, lanes, the matrix unit.
//
// Freestanding C++ (-x c++): no CUDA header, no library.  The same sources are compiled
//   __NVPTX__    to PTX for sm_80, which drivers compile for newer GPUs,
//   __AMDGCN__   to code objects; there is no matrix unit behind `multiply_16x8x16` there,
//   otherwise    to functions of this machine, whose threads emulated.h runs one after the other.
//
// A warp is 32 lanes everywhere: of a wavefront of 64 (gfx942), either half.
#ifndef LLMIR_DEVICE_H
#define LLMIR_DEVICE_H

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef u32 u32x2 __attribute__((ext_vector_type(2)));
typedef u32 u32x4 __attribute__((ext_vector_type(4)));
typedef float f32x2 __attribute__((ext_vector_type(2)));

#define INLINE static inline __attribute__((always_inline))
#if defined(__NVPTX__) || defined(__AMDGCN__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL
#endif
#define ROLLED _Pragma("clang loop unroll(disable)")

constexpr u32 kWarp = 32;

INLINE u32 bits_of(float x) { return __builtin_bit_cast(u32, x); }
INLINE float float_of(u32 x) { return __builtin_bit_cast(float, x); }

#if defined(__NVPTX__)

// KERNEL(256) name(…) {…}: a kernel whose workgroups have that many threads.  plugins/build_gpu.py
// reads the number from the source and writes it into the PTX.
#define KERNEL(threads) extern "C" __attribute__((nvptx_kernel)) void
// Memory of a workgroup, not initialised.
#define SHARED static __attribute__((address_space(3), loader_uninitialized))
#define SHARED_POINTER __attribute__((address_space(3)))

INLINE u32 thread_id() { return __nvvm_read_ptx_sreg_tid_x(); }
INLINE u32 group_x() { return __nvvm_read_ptx_sreg_ctaid_x(); }
INLINE u32 group_y() { return __nvvm_read_ptx_sreg_ctaid_y(); }
INLINE u32 group_z() { return __nvvm_read_ptx_sreg_ctaid_z(); }
INLINE void sync_group() { asm volatile("bar.sync 0;" ::: "memory"); }
INLINE u32 from_lane_xor(u32 x, u32 mask) {
  u32 y;
  asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 0x1f, 0xffffffff;" : "=r"(y) : "r"(x), "r"(mask));
  return y;
}
// Adds to a word of shared memory that other threads add to; returns what was there.
INLINE u32 add_shared(SHARED_POINTER u32 *to, u32 x) {
  u32 y;
  asm volatile("atom.shared.add.u32 %0, [%1], %2;" : "=r"(y) : "r"((u32)(u64)to), "r"(x) : "memory");
  return y;
}
INLINE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// Byte i of the result is byte (selector >> 4 i & 7) of a, b.
INLINE u32 pick_bytes(u32 a, u32 b, u32 selector) {
  u32 y;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(y) : "r"(a), "r"(b), "r"(selector));
  return y;
}
// Pairs of bf16: x + y, rounded once.
INLINE u32 add_bf16x2(u32 x, u32 y) {
  u32 z;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(z) : "r"(x), "r"(0x3f803f80u), "r"(y));
  return z;
}
// c[16 × 8] += a[16 × 16] b[16 × 8] in float32, a and b of bf16.  Lane 4 g + i has
//   a  rows g, g + 8, g, g + 8, columns 2 i, 2 i + 1 (first two registers) and 8 more (last two)
//   b  column g, rows 2 i, 2 i + 1 and 8 more
//   c  rows g, g, g + 8, g + 8, columns 2 i, 2 i + 1, 2 i, 2 i + 1
INLINE void multiply_16x8x16(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// Sixteen bytes on their way to shared memory; zeros unless `is_there`, and then nothing is read.
INLINE void copy_16_async(SHARED_POINTER void *to, const void *from, bool is_there) {
  const u32 bytes = is_there ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((u32)(u64)to), "l"(from),
               "r"(bytes)
               : "memory");
}
INLINE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until all but the last `kPending` groups have come.
template <int kPending>
INLINE void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

#elif defined(__AMDGCN__)

#define KERNEL(threads) \
  extern "C" __attribute__((amdgpu_kernel, amdgpu_flat_work_group_size(threads, threads))) void
#define SHARED static __attribute__((address_space(3), loader_uninitialized))
#define SHARED_POINTER __attribute__((address_space(3)))

INLINE u32 thread_id() { return __builtin_amdgcn_workitem_id_x(); }
INLINE u32 group_x() { return __builtin_amdgcn_workgroup_id_x(); }
INLINE u32 group_y() { return __builtin_amdgcn_workgroup_id_y(); }
INLINE u32 group_z() { return __builtin_amdgcn_workgroup_id_z(); }
INLINE void sync_group() {
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
  __builtin_amdgcn_s_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}
INLINE u32 from_lane_xor(u32 x, u32 mask) {
  const u32 lane = __builtin_amdgcn_mbcnt_hi(~0u, __builtin_amdgcn_mbcnt_lo(~0u, 0));
  return (u32)__builtin_amdgcn_ds_bpermute((int)((lane ^ mask) << 2), (int)x);
}
INLINE u32 add_shared(SHARED_POINTER u32 *to, u32 x) {
  return __atomic_fetch_add(to, x, __ATOMIC_RELAXED);
}
INLINE float exp2_fast(float x) { return __builtin_amdgcn_exp2f(x); }

#else
#include "emulated.h"
#endif

INLINE float from_lane_xor(float x, u32 mask) { return float_of(from_lane_xor(bits_of(x), mask)); }

// Sums and maxima over a warp, the same in every lane; the order is that of the lanes.
INLINE float warp_sum(float x) {
  for (u32 mask = kWarp / 2; mask; mask /= 2) x += from_lane_xor(x, mask);
  return x;
}
INLINE float warp_max(float x) {
  for (u32 mask = kWarp / 2; mask; mask /= 2) x = __builtin_fmaxf(x, from_lane_xor(x, mask));
  return x;
}

#endif
