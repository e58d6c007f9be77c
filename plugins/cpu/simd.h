// Vectors of sixteen lanes, the same source for every ISA level.
//
// A tile of a packed matrix has sixteen rows, so sixteen lanes are one AVX-512 register, two
// of AVX2, four of NEON; the compiler splits them.  Only what has an instruction of its own
// is written per level: the dot products of bytes and of bfloat16.
//
// Every function here gives the same bits on every level, but for those of bfloat16.
#ifndef LLMIR_SIMD_H
#define LLMIR_SIMD_H

#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX2__) && !defined(__AVX512VNNI__)
#define ONLY_AVX2 1
#endif

#define LANES 16
#define INLINE static inline __attribute__((always_inline))
#define VECTOR(type, n) type __attribute__((ext_vector_type(n)))
#define UNALIGNED(vector) vector __attribute__((aligned(1), may_alias))

typedef VECTOR(float, 16) f32x16;
typedef VECTOR(int32_t, 16) i32x16;
typedef VECTOR(uint32_t, 16) u32x16;
typedef VECTOR(uint16_t, 16) u16x16;
typedef VECTOR(int8_t, 16) i8x16;
typedef VECTOR(int16_t, 16) i16x16;
typedef VECTOR(_Float16, 16) f16x16;
typedef VECTOR(uint8_t, 16) u8x16;
typedef VECTOR(uint8_t, 32) u8x32;
typedef VECTOR(uint8_t, 64) u8x64;
typedef VECTOR(uint16_t, 32) u16x32;

typedef UNALIGNED(f32x16) f32x16_any;
typedef UNALIGNED(i32x16) i32x16_any;
typedef UNALIGNED(u16x16) u16x16_any;
typedef UNALIGNED(f16x16) f16x16_any;
typedef UNALIGNED(i8x16) i8x16_any;
typedef UNALIGNED(i16x16) i16x16_any;
typedef UNALIGNED(u8x16) u8x16_any;
typedef UNALIGNED(u8x32) u8x32_any;
typedef UNALIGNED(u8x64) u8x64_any;
typedef UNALIGNED(u16x32) u16x32_any;
typedef UNALIGNED(u32x16) u32x16_any;

INLINE f32x16 splat(float x) { return (f32x16)(x); }
INLINE i32x16 splat_i32(int32_t x) { return (i32x16)(x); }
INLINE f32x16 load(const float *p) { return *(const f32x16_any *)p; }
INLINE void store(float *p, f32x16 x) { *(f32x16_any *)p = x; }
INLINE f32x16 fma16(f32x16 a, f32x16 b, f32x16 c) { return __builtin_elementwise_fma(a, b, c); }
// One instruction: of two, b where they do not compare.
INLINE f32x16 max16(f32x16 a, f32x16 b) { return a > b ? a : b; }
INLINE f32x16 min16(f32x16 a, f32x16 b) { return a < b ? a : b; }
INLINE f32x16 abs16(f32x16 a) { return __builtin_elementwise_abs(a); }
INLINE f32x16 to_f32(i32x16 x) { return __builtin_convertvector(x, f32x16); }
INLINE i32x16 nearest(f32x16 x) {  // ties to even; |x| < 2^31
#if defined(__AVX512F__)
  return (i32x16)_mm512_cvt_roundps_epi32((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
  i32x16 y;
  y.lo = (VECTOR(int32_t, 8))_mm256_cvtps_epi32((__m256)x.lo);
  y.hi = (VECTOR(int32_t, 8))_mm256_cvtps_epi32((__m256)x.hi);
  return y;
#else
  return __builtin_convertvector(__builtin_elementwise_roundeven(x), i32x16);
#endif
}
INLINE f32x16 load_f16(const void *p) {
  return __builtin_convertvector(*(const f16x16_any *)p, f32x16);
}
INLINE f32x16 from_bf16(u16x16 bits) {
  return (f32x16)(__builtin_convertvector(bits, u32x16) << 16);
}
INLINE f32x16 load_bf16(const void *p) { return from_bf16(*(const u16x16_any *)p); }
// To nearest, ties to even; x is no NaN.  With an instruction of its own subnormals become 0.
INLINE u16x16 to_bf16(f32x16 x) {
#if defined(__AVX512BF16__)
  return (u16x16)_mm512_cvtneps_pbh((__m512)x);
#endif
  u32x16 bits = (u32x16)x;
  bits += 0x7FFF + ((bits >> 16) & 1);
  return __builtin_convertvector(bits >> 16, u16x16);
}
INLINE void prefetch(const void *p) { __builtin_prefetch(p, 0, 3); }

// Halves are added until one lane is left: one order on every level.
INLINE float sum16(f32x16 x) {
  VECTOR(float, 8) a = x.lo + x.hi;
  VECTOR(float, 4) b = a.lo + a.hi;
  VECTOR(float, 2) c = b.lo + b.hi;
  return c.x + c.y;
}
INLINE float largest16(f32x16 x) {
  x = max16(x, __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
  x = max16(x, __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
  x = max16(x, __builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
  x = max16(x, __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));
  return x[0];
}
// Bit i: lane i, of a comparison.
INLINE uint32_t bits_of_mask(i32x16 mask) {
  return __builtin_bit_cast(uint16_t, __builtin_convertvector(mask != 0, VECTOR(_Bool, 16)));
}
INLINE int32_t sum16_i32(i32x16 x) { return __builtin_reduce_add(x); }

// Lane i of the result is the largest lane, or the sum of the lanes, of x[i].  Overwrites x.
// Each step halves the number of vectors and of lanes that belong to one of the sixteen.
#define EACH_OF_16(name, vector, combine)                                                          \
  INLINE vector name(vector *x) {                                                                  \
    for (int i = 0; i < 8; i++)                                                                    \
      x[i] = combine(__builtin_shufflevector(x[i], x[i + 8], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18,   \
                                             19, 20, 21, 22, 23),                                  \
                     __builtin_shufflevector(x[i], x[i + 8], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, \
                                             26, 27, 28, 29, 30, 31));                             \
    for (int i = 0; i < 4; i++)                                                                    \
      x[i] = combine(__builtin_shufflevector(x[i], x[i + 4], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, \
                                             11, 24, 25, 26, 27),                                  \
                     __builtin_shufflevector(x[i], x[i + 4], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13,   \
                                             14, 15, 28, 29, 30, 31));                             \
    for (int i = 0; i < 2; i++)                                                                    \
      x[i] = combine(__builtin_shufflevector(x[i], x[i + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, \
                                             25, 12, 13, 28, 29),                                  \
                     __builtin_shufflevector(x[i], x[i + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11,   \
                                             26, 27, 14, 15, 30, 31));                             \
    return combine(__builtin_shufflevector(x[0], x[1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26,  \
                                           12, 28, 14, 30),                                        \
                   __builtin_shufflevector(x[0], x[1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27,  \
                                           13, 29, 15, 31));                                       \
  }
#define ADDED(a, b) ((a) + (b))
EACH_OF_16(largest_of_each, f32x16, max16)
EACH_OF_16(sum_of_each, i32x16, ADDED)

// e^x for x <= 0 up to 88, within 2 units in the last place; 0 below -87.3.
// Cephes' expf: x = n ln 2 + r, |r| <= ln 2 / 2, a polynomial in r, 2^n by its exponent bits.
INLINE f32x16 exp16(f32x16 x) {
  f32x16 in = x;
  x = min16(max16(x, splat(-87.3f)), splat(88.0f));
  f32x16 n = __builtin_elementwise_roundeven(x * splat(1.44269504f));
  f32x16 r = fma16(n, splat(-0.693359375f), x);
  r = fma16(n, splat(2.12194440e-4f), r);
  f32x16 p = splat(1.9875691500e-4f);
  p = fma16(p, r, splat(1.3981999507e-3f));
  p = fma16(p, r, splat(8.3334519073e-3f));
  p = fma16(p, r, splat(4.1665795894e-2f));
  p = fma16(p, r, splat(1.6666665459e-1f));
  p = fma16(p, r, splat(5.0000001201e-1f));
  p = fma16(p, r * r, r) + splat(1.0f);
  i32x16 power = (__builtin_convertvector(n, i32x16) + 127) << 23;
  f32x16 y = p * (f32x16)power;
  return in < splat(-87.3f) ? splat(0.0f) : y;
}

// tanh x, within 3 units in the last place: Cephes' polynomial below 0.625, else by e^(-2 |x|).
INLINE f32x16 tanh16(f32x16 x) {
  const f32x16 size = abs16(x), z = x * x;
  f32x16 p = splat(-5.70498872745e-3f);
  p = fma16(p, z, splat(2.06390887954e-2f));
  p = fma16(p, z, splat(-5.37397155531e-2f));
  p = fma16(p, z, splat(1.33314422036e-1f));
  p = fma16(p, z, splat(-3.33332819422e-1f));
  const f32x16 small = fma16(p * z, x, x);
  const f32x16 e = exp16(size * splat(-2));
  const f32x16 large = (splat(1) - e) / (splat(1) + e);
  return size >= splat(0.625f) ? (x < splat(0) ? -large : large) : small;
}

INLINE float sqrt_f32(float x) { return __builtin_sqrtf(x); }

// acc[i] + Σ_j w[4i + j] * a[j], the four of `a` signed.  Exact.  Bytes of w are unsigned, in
// dot4_small up to 127; with DOT4_IS_SIGNED they are signed, and there is no dot4.
#if defined(__AVX512VNNI__)
INLINE i32x16 dot4(i32x16 acc, u8x64 w, int32_t a) {
  return (i32x16)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, _mm512_set1_epi32(a));
}
INLINE i32x16 dot4_small(i32x16 acc, u8x64 w, int32_t a) { return dot4(acc, w, a); }
#elif defined(ONLY_AVX2)
typedef VECTOR(int32_t, 8) i32x8;  // multiply_avx2.h
#else
INLINE int32x4_t dot4_quarter(int32x4_t acc, int8x16_t w, int8x16_t a) {
#if defined(__ARM_FEATURE_DOTPROD)
  return vdotq_s32(acc, w, a);
#else
  const int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(a)), high = vmull_high_s8(w, a);
  return vaddq_s32(acc, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
#endif
}
// Bytes of w signed.
INLINE i32x16 dot4_small(i32x16 acc, u8x64 w, int32_t a) {
  int8x16_t four = vreinterpretq_s8_s32(vdupq_n_s32(a));
  i32x16 y;
  for (int i = 0; i < 4; i++) {
    int8x16_t part;
    int32x4_t sum;
    __builtin_memcpy_inline(&part, (const char *)&w + 16 * i, 16);
    __builtin_memcpy_inline(&sum, (const char *)&acc + 16 * i, 16);
    sum = dot4_quarter(sum, part, four);
    __builtin_memcpy_inline((char *)&y + 16 * i, &sum, 16);
  }
  return y;
}
// Products of signed bytes: a byte of 128 or more has to be made one of those.
#define DOT4_IS_SIGNED 1
#endif

// acc[i] + w[2i] * a[0] + w[2i + 1] * a[1], of bfloat16.  With an instruction of its own the
// odd product is added first and subnormal numbers are 0; else both are fused multiply-adds.
INLINE f32x16 dot2_bf16(f32x16 acc, u32x16 w, uint32_t a) {
#if defined(__AVX512BF16__)
  return (f32x16)_mm512_dpbf16_ps((__m512)acc, (__m512bh)w, (__m512bh)_mm512_set1_epi32((int)a));
#else
  const u32x16 both = (u32x16)(a);
  acc = fma16((f32x16)(w & 0xFFFF0000), (f32x16)(both & 0xFFFF0000), acc);
  return fma16((f32x16)(w << 16), (f32x16)(both << 16), acc);
#endif
}

#endif
