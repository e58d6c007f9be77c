// Rows of integer activations times a tile of a quantised matrix.
//
//   sum_b  = Σ_k∈b (u[n, k] - zero) q[t, k]                                      exact, i32
//   y[t,n] = Σ_b fma(scale_w[n, b] scale_a[t, b], sum_b, …), fma(min[n, b], scaled_sum[t, b], …)
//
// b: blocks of 32 columns in their order; formats that are halved have a sum for each sixteen.
//
// A tile is read as it is packed, and its elements taken apart in registers.  AMX's tiles compute
// the same numbers another way (matmul_amx.h).
#ifndef LLMIR_MULTIPLY_H
#define LLMIR_MULTIPLY_H

#include "activations.h"
#include "blocks.h"

#define NOINLINE static __attribute__((noinline))

// The zero that is left to the offsets of the rows (activations.h); the rest of a format's zero
// is taken off its bytes.
INLINE int zero_of_offsets(int format) {
#if defined(DOT4_IS_SIGNED)
  return bytes_are_small(format) ? zero_of(format) : 0;
#else
  return zero_of(format);
#endif
}

#if defined(ONLY_AVX2)
#include "multiply_avx2.h"
#else
INLINE i32x16 dot_quads(int small, int count, i32x16 sum, const u8x64 *quads, const int32_t *acts) {
#pragma clang loop unroll(full)
  for (int j = 0; j < count; j++) {
#if defined(DOT4_IS_SIGNED)
    (void)small;
    sum = dot4_small(sum, quads[j], acts[j]);
#else
    sum = small ? dot4_small(sum, quads[j], acts[j]) : dot4(sum, quads[j], acts[j]);
#endif
  }
  return sum;
}

// sums[m] = Σ over a block of row m's bytes at acts + m * stride.
INLINE void dot_rows(int format, int rows, const uint8_t *p, const Block *block,
                     const int8_t *acts, size_t stride, i32x16 *sums) {
  (void)p;
  u8x64 quads[8];
  for (int j = 0; j < 8; j++)
    quads[j] = block->quad[j] - (uint8_t)(zero_of(format) - zero_of_offsets(format));
#pragma clang loop unroll(full)
  for (int m = 0; m < rows; m++)
    sums[m] = dot_quads(bytes_are_small(format), 8, splat_i32(0), quads,
                        (const int32_t *)(acts + (size_t)m * stride));
}

// acc[m] += row m times block b.
INLINE void add_block(int format, int with_offset, int precision, int rows, const uint8_t *p,
                      const Block *block, const ActivationRow *first, size_t stride, size_t b,
                      f32x16 *acc) {
  (void)p;
  const int small = bytes_are_small(format);
  const size_t parts = is_halved(format) ? 2 : 1, quads = 8 / parts;
#pragma clang loop unroll(full)
  for (int m = 0; m < rows; m++) {
    const size_t at = (size_t)m * stride;
    const int32_t *high = (const int32_t *)((const uint8_t *)first->high + at) + b * 8;
    const int32_t *low = (const int32_t *)((const uint8_t *)first->low + at) + b * 8;
    const int32_t *offset = (const int32_t *)((const uint8_t *)first->offset + at) + b * parts;
    const float scale = ((const float *)((const uint8_t *)first->scale + at))[b];
#pragma clang loop unroll(full)
    for (size_t part = 0; part < parts; part++) {
      const size_t j = part * quads;
      const i32x16 from = splat_i32(with_offset ? offset[part] : 0);
      i32x16 sum;
      if (precision == INT8) {
        sum = dot_quads(small, (int)quads, from, block->quad + j, high + j);
      } else {
        sum = dot_quads(small, (int)quads, splat_i32(0), block->quad + j, high + j);
        sum = (sum << precision) + dot_quads(small, (int)quads, from, block->quad + j, low + j);
      }
      const f32x16 scale_w = part ? block->second : block->scale;
      acc[m] = fma16(to_f32(sum), scale_w * splat(scale), acc[m]);
    }
    if (has_min(format)) {
      const float scaled_sum = ((const float *)((const uint8_t *)first->scaled_sum + at))[b];
      acc[m] = fma16(block->min, splat(scaled_sum), acc[m]);
    }
  }
}

#endif

// How many rows a tile is read for at a time, at most: AVX-512 has the registers.  With tiles of
// AMX's own more rows go there.
#if defined(__AVX512VNNI__) && !defined(__AMX_INT8__)
#define ROWS_OF_TILE 12
#else
#define ROWS_OF_TILE 4
#endif

// out[m] = row m times a tile as it is packed.
INLINE void multiply_tile(int format, int precision, int rows, const uint8_t *acts, size_t stride,
                          size_t k, const uint8_t *tile, float *out) {
  const ActivationRow first = activation_row(acts, k, precision);
  f32x16 acc[ROWS_OF_TILE];
  for (int m = 0; m < rows; m++) acc[m] = splat(0);
  for (size_t b = 0; b < k / BLOCK; b++) {
    if (rows <= 4) prefetch_after(format, tile, b);
    Block block;
    const uint8_t *header, *p = block_at(format, tile, b, &header);
    read_block(format, tile, b, &block);
    const uint8_t less = (uint8_t)(zero_of(format) - zero_of_offsets(format));
    if (less)
      for (int j = 0; j < 8; j++) block.quad[j] -= less;
    add_block(format, zero_of_offsets(format) != 0, precision, rows, p, &block, &first, stride, b,
              acc);
  }
  for (int m = 0; m < rows; m++) store(out + m * LANES, acc[m]);
}

#define TILE_ROWS(n, format, precision) \
  case n: multiply_tile(format, precision, n, acts, stride, k, tile, out); return;
#if ROWS_OF_TILE == 12
#define ROWS_CASES(format, precision)                                                            \
  TILE_ROWS(12, format, precision) TILE_ROWS(8, format, precision)                               \
  TILE_ROWS(4, format, precision) TILE_ROWS(2, format, precision) TILE_ROWS(1, format, precision)
#else
#define ROWS_CASES(format, precision) \
  TILE_ROWS(4, format, precision) TILE_ROWS(2, format, precision) TILE_ROWS(1, format, precision)
#endif

// One function for int8, one for both precisions of two planes.
#define MULTIPLY_TILE(name, format)                                                                \
  NOINLINE void multiply_tile_##name##_1(int precision, size_t rows, const uint8_t *acts,          \
                                         size_t stride, size_t k, const uint8_t *tile, float *out) { \
    (void)precision;                                                                               \
    switch (rows) { ROWS_CASES(format, INT8) }                                                     \
  }                                                                                                \
  NOINLINE void multiply_tile_##name##_2(int precision, size_t rows, const uint8_t *acts,          \
                                         size_t stride, size_t k, const uint8_t *tile, float *out) { \
    if (precision == INT8) return;                                                                 \
    switch (rows) { ROWS_CASES(format, precision) }                                                \
  }
QUANTISED_FORMATS(MULTIPLY_TILE)

// out[m] = row m times a tile, by vectors.
INLINE void multiply_by_vectors(int format, int precision, size_t rows, const uint8_t *acts,
                                size_t stride, size_t k, const uint8_t *tile, float *out) {
#define TILE_CASE(name, format)                                                                \
  case format:                                                                                 \
    (precision == INT8 ? multiply_tile_##name##_1 : multiply_tile_##name##_2)(                 \
        precision, count, acts, stride, k, tile, out);                                         \
    break;
  for (size_t count; rows; rows -= count) {
    const size_t most = rows < ROWS_OF_TILE ? rows : ROWS_OF_TILE;
    count = most >= 12 ? 12 : most >= 8 ? 8 : most >= 4 ? 4 : most >= 2 ? 2 : 1;
    switch (format) { QUANTISED_FORMATS(TILE_CASE) default: break; }
    acts += count * stride;
    out += count * LANES;
  }
}

// out[m] += the low plane of row m, of int8_16, times a tile: of the blocks that have one in any
// row.  Others' are zeros there, and add nothing.
INLINE void add_low_rows(int format, int rows, const uint8_t *acts, size_t stride, size_t k,
                         const uint8_t *tile, float *out) {
  const ActivationRow first = activation_row(acts, k, INT8);
  const LowPlane planes = low_plane(acts, k);
  const int with_offset = zero_of_offsets(format) != 0;
  f32x16 acc[4];
  for (size_t from = 0; from < k / BLOCK; from += 32) {
    uint32_t fine = 0;
    for (int m = 0; m < rows; m++)
      fine |= ((const uint32_t *)((const uint8_t *)planes.fine + (size_t)m * stride))[from / 32];
    if (!fine) continue;
    for (int m = 0; m < rows; m++) acc[m] = load(out + m * LANES);
    for (; fine; fine &= fine - 1) {
      const size_t b = from + (size_t)__builtin_ctz(fine);
      Block block;
      const uint8_t *header, *p = block_at(format, tile, b, &header);
      read_block(format, tile, b, &block);
      i32x16 sums[4];
      dot_rows(format, rows, p, &block, planes.low + b * BLOCK, stride, sums);
      for (int m = 0; m < rows; m++) {
        const size_t at = (size_t)m * stride;
        const float scale = ((const float *)((const uint8_t *)first.scale + at))[b] / LOW_STEPS;
        if (with_offset) sums[m] += ((const int32_t *)((const uint8_t *)planes.offset + at))[b];
        acc[m] = fma16(to_f32(sums[m]), block.scale * splat(scale), acc[m]);
      }
    }
    for (int m = 0; m < rows; m++) store(out + m * LANES, acc[m]);
  }
}

#define ADD_LOW_ROWS(name, format)                                                               \
  NOINLINE void add_low_rows_##name(size_t rows, const uint8_t *acts, size_t stride, size_t k,   \
                                    const uint8_t *tile, float *out) {                           \
    for (; rows >= 4; rows -= 4, acts += 4 * stride, out += 4 * LANES)                           \
      add_low_rows(format, 4, acts, stride, k, tile, out);                                       \
    for (; rows; rows--, acts += stride, out += LANES)                                           \
      add_low_rows(format, 1, acts, stride, k, tile, out);                                       \
  }
FOUR_BIT_FORMATS(ADD_LOW_ROWS)

INLINE void add_low_planes(int format, size_t rows, const uint8_t *acts, size_t stride, size_t k,
                           const uint8_t *tile, float *out) {
#define LOW_CASE(name, format) \
  case format: add_low_rows_##name(rows, acts, stride, k, tile, out); break;
  switch (format) { FOUR_BIT_FORMATS(LOW_CASE) default: break; }
}

#endif
