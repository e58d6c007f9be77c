// Pages of the KV cache as these kernels keep them.
//
// A layer's pages are kv[N, 2, H, ps, D] to everybody else: bytes that only append_kv and
// paged_attention read.  Here the elements of one page and head, [ps, D] for K and V, lie so
// that a vector holds what one instruction needs (o: position in the page, d: dim):
//
//   f32, f16, int8, fp8   K: d * ps + o                         V: o * D + d
//   bf16                  K: ((d / 2) * ps + o) * 2 + d % 2     V: ((o / 2) * D + d) * 2 + o % 2
//
// K by columns: the scores of sixteen positions are one register, and no lanes are added up.
// bf16 in pairs along the sum: one instruction multiplies and adds two.
// int8: after the elements of K, and of V, the scales float[ps] of the positions; D + 4 to others.
// What int8 and fp8 are: llmir/dialect_ext/kv_formats.py.
#ifndef LLMIR_PAGES_H
#define LLMIR_PAGES_H

#include "simd.h"

enum { KV_F32, KV_F16, KV_BF16, KV_INT8, KV_FP8 };
#define LARGEST_INT8 127.0f
#define LARGEST_FP8 448.0f
#define FP8_UNIT 256.0f  // times what load_fp8 gives

INLINE size_t kv_bytes(int dtype) {
  return dtype == KV_F32 ? 4 : dtype == KV_F16 || dtype == KV_BF16 ? 2 : 1;
}

typedef struct {
  size_t heads, page_size, dim;
} KvShape;

INLINE size_t kv_page_bytes(int dtype, const KvShape *shape) {
  return shape->page_size * (shape->dim * kv_bytes(dtype) + (dtype == KV_INT8 ? 4 : 0));
}

// The bytes of K or V of one page and head.
INLINE uint8_t *kv_page(uint8_t *kv, int dtype, const KvShape *shape, size_t page, int is_v,
                        size_t head) {
  size_t at = (page * 2 + (size_t)is_v) * shape->heads + head;
  return kv + at * kv_page_bytes(dtype, shape);
}

// max |x| / 127 of x[dim]; NaN if one of them is.
INLINE float int8_scale(const float *x, size_t dim) {
  f32x16 largest = splat(0);
  i32x16 is_nan = splat_i32(0);
  for (size_t d = 0; d < dim; d += LANES) {
    largest = max16(abs16(load(x + d)), largest);
    is_nan |= load(x + d) != load(x + d);
  }
  return __builtin_reduce_or(is_nan) ? __builtin_nanf("") : largest16(largest) / LARGEST_INT8;
}

INLINE u8x16 to_int8(f32x16 x, float scale) {
  f32x16 q = x / splat(scale > 0 ? scale : 1);
  q = q == q ? q : splat(0);
  q = min16(max16(q, splat(-LARGEST_INT8)), splat(LARGEST_INT8));
  return (u8x16)__builtin_convertvector(nearest(q), i8x16);
}

// To float8_e4m3fn, to nearest, ties to even; at the most 448, and a NaN stays one.
INLINE u8x16 to_fp8(f32x16 x) {
  const u32x16 size = (u32x16)abs16(x);
  const f32x16 capped = (f32x16)size > splat(LARGEST_FP8) ? splat(LARGEST_FP8) : (f32x16)size;
  const u32x16 bits = (u32x16)capped;
  const u32x16 normal = ((bits + 0x7FFFF + (bits >> 20 & 1)) >> 20) - (120 << 3);
  const u32x16 small = (u32x16)nearest(min16(capped, splat(1)) * splat(512));
  u32x16 byte = capped < splat(1.0f / 64) ? small : normal;
  byte = size > 0x7F800000 ? 0x7F : byte;
  return __builtin_convertvector(byte | ((u32x16)x >> 24 & 0x80), u8x16);
}

// 1 / 256 of the numbers: as float16, whose exponent is one of as many bits and one more.
INLINE f32x16 load_fp8(const uint8_t *p) {
  const u16x16 byte = __builtin_convertvector(*(const u8x16_any *)p, u16x16), size = byte & 0x7F;
  const u16x16 nan = (u16x16)(size == 0x7F) & 0x7C00;
  const u16x16 half = (byte & 0x80) << 8 | size << 7 | nan;
  return __builtin_convertvector((f16x16)half, f32x16);
}

INLINE f32x16 load_int8(const uint8_t *p) {
  return to_f32(__builtin_convertvector(*(const i8x16_any *)p, i32x16));
}

INLINE void store_element(uint8_t *p, int dtype, size_t at, float x) {
  if (dtype == KV_F32) {
    ((float *)p)[at] = x;
  } else if (dtype == KV_F16) {
    ((_Float16 *)p)[at] = (_Float16)x;
  } else {
    union { float f; uint32_t u; } bits = {x};
    bits.u += 0x7FFF + ((bits.u >> 16) & 1);
    ((uint16_t *)p)[at] = (uint16_t)(bits.u >> 16);
  }
}

// x[D] as bytes: of K, a page size apart; of V, beside each other.  Of int8 the scale as well.
INLINE void append_bytes(uint8_t *page, int dtype, const KvShape *shape, size_t o, int is_v,
                         const float *x) {
  const size_t ps = shape->page_size, dim = shape->dim;
  const float scale = dtype == KV_INT8 ? int8_scale(x, dim) : 0;
  for (size_t d = 0; d < dim; d += LANES) {
    const u8x16 q = dtype == KV_INT8 ? to_int8(load(x + d), scale) : to_fp8(load(x + d));
    if (is_v)
      *(u8x16_any *)(page + o * dim + d) = q;
    else
      for (size_t i = 0; i < LANES; i++) page[(d + i) * ps + o] = q[i];
  }
  if (dtype == KV_INT8) ((float *)(page + ps * dim))[o] = scale;
}

// k[D] and v[D] of one token and head into their places.
INLINE void append_head(uint8_t *kv, int dtype, const KvShape *shape, size_t slot, size_t head,
                        const float *k, const float *v) {
  const size_t ps = shape->page_size, dim = shape->dim;
  const size_t page = slot / ps, o = slot % ps;
  uint8_t *k_page = kv_page(kv, dtype, shape, page, 0, head);
  uint8_t *v_page = kv_page(kv, dtype, shape, page, 1, head);
  if (dtype == KV_INT8 || dtype == KV_FP8) {
    append_bytes(k_page, dtype, shape, o, 0, k);
    append_bytes(v_page, dtype, shape, o, 1, v);
    return;
  }
  for (size_t d = 0; d < dim; d++) {
    size_t k_at = dtype == KV_BF16 ? ((d / 2) * ps + o) * 2 + d % 2 : d * ps + o;
    size_t v_at = dtype == KV_BF16 ? ((o / 2) * dim + d) * 2 + o % 2 : o * dim + d;
    store_element(k_page, dtype, k_at, k[d]);
    store_element(v_page, dtype, v_at, v[d]);
  }
}

#endif
