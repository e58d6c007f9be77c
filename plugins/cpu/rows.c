// llmir_rows_<format>: rows of a packed table, by index.
//
//   y[t, k] = w[ids[t], k], of a quantised table: scale (u - zero), rounded, + min, rounded
//
// ABI: ids i32[T]  table u8[…] (blocks.h)  → y f32[T, K]; T and K
// Workgroup id of count: an even share of the rows.
//
// llmir_rope_append_<kv>: heads of a token turned by RoPE, its keys and values into their page.
//
//   qkv f32[T, (Hq + 2 H) D]: the heads of q, of k, of v
//   q', k' = rope(norm(head)), v' = v         norm: RMSNorm over D, where there is one
//   y f32[T, Hq, D] = q';  kv: k', v' at slots[t]      (pages.h)
//   rope: as in llm.rope; table f32[C, D], cosines then sines of a position
//
// ABI: qkv, q_norm f32[D], k_norm f32[D], positions i32[T], table, slots i32[T], kv → y;
//      T, Hq, H, page size, D, flags, eps
// Workgroup id of count: an even share of the tokens.  Two tokens never share a slot, but for
// padding in page 0, which nobody reads.
#include "blocks.h"
#include "pages.h"

INLINE void float_table_row(int format, const uint8_t *tile, size_t row, size_t k, float *y) {
  for (size_t i = 0; i < k; i++) {
    if (format == F32) y[i] = ((const float *)tile)[i * LANES + row];
    if (format == F16) y[i] = (float)((const _Float16 *)tile)[i * LANES + row];
    if (format == BF16) {
      union { uint32_t u; float f; } wide = {
          (uint32_t)((const uint16_t *)tile)[(i / 2 * LANES + row) * 2 + i % 2] << 16};
      y[i] = wide.f;
    }
  }
}

INLINE void table_row(int format, const uint8_t *table, size_t id, size_t k, float *y) {
  const uint8_t *tile = table + id / LANES * tile_bytes(format, k);
  const size_t row = id % LANES;
  if (is_float(format)) {
    float_table_row(format, tile, row, k, y);
    return;
  }
  for (size_t b = 0; b < k / BLOCK; b++) {
    Block block;
    read_block(format, tile, b, &block);
    uint32_t four[8];
    for (int j = 0; j < 8; j++) four[j] = ((u32x16)block.quad[j])[row];
    for (size_t i = 0; i < BLOCK; i++) {
      const int u = (int)(four[i / 4] >> (i % 4 * 8) & 255);
      const f32x16 scale = is_halved(format) && i >= LANES ? block.second : block.scale;
      const float v = (float)(u - zero_of(format)) * scale[row];
      y[b * BLOCK + i] = has_min(format) ? v + block.min[row] : v;
    }
  }
}

#define ROWS_OF(name, format)                                                                \
  void llmir_rows_##name(const int32_t *ids, size_t ids_at, const uint8_t *table,            \
                         size_t table_at, float *y, size_t y_at, size_t tokens, size_t k,    \
                         size_t id, size_t count) {                                          \
    for (size_t t = tokens * id / count; t < tokens * (id + 1) / count; t++)                 \
      table_row(format, table + table_at, (size_t)ids[ids_at + t], k, y + y_at + t * k);     \
  }

QUANTISED_FORMATS(ROWS_OF)
FLOAT_FORMATS(ROWS_OF)

enum { HAS_Q_NORM = 1, HAS_K_NORM = 2 };
#define MAX_HEAD_DIM 512

// y[D] = rope(norm(x[D])); y may be x.
INLINE void turn_head(const float *x, const float *norm, float eps, const float *angles, size_t dim,
                      float *y) {
  const size_t half = dim / 2;
  float inverse = 1;
  if (norm) inverse = rms_scale(x, dim, eps);
  for (size_t i = 0; i < half; i++) {
    float low = x[i], high = x[i + half];
    if (norm) {
      low = low * inverse * norm[i];
      high = high * inverse * norm[i + half];
    }
    y[i] = low * angles[i] - high * angles[i + half];
    y[i + half] = high * angles[i] + low * angles[i + half];
  }
}

INLINE void rope_append(int dtype, const float *qkv, const float *q_norm, const float *k_norm,
                        const int32_t *positions, const float *table, const int32_t *slots,
                        uint8_t *kv, float *y, size_t tokens, size_t q_heads, KvShape shape,
                        float eps, size_t id, size_t count) {
  const size_t dim = shape.dim, heads = q_heads + 2 * shape.heads;
  float turned[MAX_HEAD_DIM] __attribute__((aligned(64)));
  for (size_t t = tokens * id / count; t < tokens * (id + 1) / count; t++) {
    const float *row = qkv + t * heads * dim;
    const float *angles = table + (size_t)positions[t] * dim;
    for (size_t h = 0; h < q_heads; h++)
      turn_head(row + h * dim, q_norm, eps, angles, dim, y + (t * q_heads + h) * dim);
    for (size_t h = 0; h < shape.heads; h++) {
      turn_head(row + (q_heads + h) * dim, k_norm, eps, angles, dim, turned);
      append_head(kv, dtype, &shape, (size_t)slots[t], h, turned,
                  row + (q_heads + shape.heads + h) * dim);
    }
  }
}

INLINE void append(int dtype, const float *k, const float *v, const int32_t *slots, uint8_t *kv,
                   size_t tokens, KvShape shape, size_t id, size_t count) {
  for (size_t t = tokens * id / count; t < tokens * (id + 1) / count; t++)
    for (size_t h = 0; h < shape.heads; h++)
      append_head(kv, dtype, &shape, (size_t)slots[t], h, k + (t * shape.heads + h) * shape.dim,
                  v + (t * shape.heads + h) * shape.dim);
}

#define ROPE_APPEND(name, element, dtype)                                                        \
  void llmir_rope_append_##name(                                                                 \
      const float *qkv, size_t qkv_at, const float *q_norm, size_t q_norm_at,                    \
      const float *k_norm, size_t k_norm_at, const int32_t *positions, size_t positions_at,      \
      const float *table, size_t table_at, const int32_t *slots, size_t slots_at, element *kv,   \
      size_t kv_at, float *y, size_t y_at, size_t tokens, size_t q_heads, size_t heads,          \
      size_t page_size, size_t dim, size_t flags, float eps, size_t id, size_t count) {          \
    rope_append(dtype, qkv + qkv_at, flags & HAS_Q_NORM ? q_norm + q_norm_at : NULL,             \
                flags & HAS_K_NORM ? k_norm + k_norm_at : NULL, positions + positions_at,        \
                table + table_at, slots + slots_at, (uint8_t *)(kv + kv_at), y + y_at, tokens,   \
                q_heads, (KvShape){heads, page_size, dim}, eps, id, count);                      \
  }                                                                                              \
  void llmir_append_kv_##name(element *kv, size_t kv_at, const float *k, size_t k_at,            \
                              const float *v, size_t v_at, const int32_t *slots,                 \
                              size_t slots_at, size_t tokens, size_t heads, size_t page_size,    \
                              size_t dim, size_t id, size_t count) {                             \
    append(dtype, k + k_at, v + v_at, slots + slots_at, (uint8_t *)(kv + kv_at), tokens,         \
           (KvShape){heads, page_size, dim}, id, count);                                         \
  }

ROPE_APPEND(f32, float, KV_F32)
ROPE_APPEND(f16, _Float16, KV_F16)
ROPE_APPEND(bf16, uint16_t, KV_BF16)
ROPE_APPEND(int8, uint8_t, KV_INT8)
ROPE_APPEND(fp8, uint8_t, KV_FP8)
