// Pages of the KV cache as these kernels keep them.
//
// A layer's pages are kv[N, 2, H, ps, D] to everybody else: bytes that only append_kv and
// paged_attention read.  Here the elements of one page and head, [ps, D] for K and V, lie so
// that a vector holds what one instruction needs (o: position in the page, d: dim):
//
//   f32, f16   K: d * ps + o                              V: o * D + d
//   bf16       K: ((d / 2) * ps + o) * 2 + d % 2          V: ((o / 2) * D + d) * 2 + o % 2
//
// K by columns: the scores of sixteen positions are one register, and no lanes are added up.
// bf16 in pairs along the sum: one instruction multiplies and adds two.
#ifndef LLMIR_PAGES_H
#define LLMIR_PAGES_H

#include "simd.h"

enum { KV_F32, KV_F16, KV_BF16 };

INLINE size_t kv_bytes(int dtype) { return dtype == KV_F32 ? 4 : 2; }

typedef struct {
  size_t heads, page_size, dim;
} KvShape;

// The bytes of K or V of one page and head.
INLINE uint8_t *kv_page(uint8_t *kv, int dtype, const KvShape *shape, size_t page, int is_v,
                        size_t head) {
  size_t at = (page * 2 + (size_t)is_v) * shape->heads + head;
  return kv + at * shape->page_size * shape->dim * kv_bytes(dtype);
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

// k[D] and v[D] of one token and head into their places.
INLINE void append_head(uint8_t *kv, int dtype, const KvShape *shape, size_t slot, size_t head,
                        const float *k, const float *v) {
  const size_t ps = shape->page_size, dim = shape->dim;
  const size_t page = slot / ps, o = slot % ps;
  uint8_t *k_page = kv_page(kv, dtype, shape, page, 0, head);
  uint8_t *v_page = kv_page(kv, dtype, shape, page, 1, head);
  for (size_t d = 0; d < dim; d++) {
    size_t k_at = dtype == KV_BF16 ? ((d / 2) * ps + o) * 2 + d % 2 : d * ps + o;
    size_t v_at = dtype == KV_BF16 ? ((o / 2) * dim + d) * 2 + o % 2 : o * dim + d;
    store_element(k_page, dtype, k_at, k[d]);
    store_element(v_page, dtype, v_at, v[d]);
  }
}

#endif
