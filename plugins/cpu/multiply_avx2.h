// A block of integer weights times rows of activations with AVX2, which has no dot product of
// bytes: what multiply.h's add_block computes, the same integers.
//
//   narrow  unsigned bytes up to 63 times signed bytes, pairs of products in 16 bits: as many
//           quads are added up there as fit, then widened once
//   wide    other bytes times the activations as 16-bit integers (`is_wide`, activations.h), both
//           widened first: one product for both planes
#ifndef LLMIR_MULTIPLY_AVX2_H
#define LLMIR_MULTIPLY_AVX2_H

#include "activations.h"
#include "blocks.h"

#define UNROLL _Pragma("clang loop unroll(full)")

#define MOST_ROWS 4  // of activations at a time: their sums fill half of the registers

// The sum so far, as it is: the compiler would add in another order, with more of them at once
// than there are registers.
#define KEEP(vector) __asm__("" : "+x"(vector))

// Of quads of a format, whose sums of pairs with bytes from -128 to 127 fit 16 bits together.
INLINE int quads_in_16_bits(int format) {
  return bits_of(format) == 4 ? 8 : bits_of(format) == 5 ? 4 : 2;
}

// Pairs of products of one quad, added to low and high [rows]; j: which quad of the block.
INLINE void add_pairs(int is_first, int rows, __m256i w_low, __m256i w_high, const int8_t *acts,
                      size_t stride, int j, __m256i *low, __m256i *high) {
  UNROLL for (int m = 0; m < rows; m++) {
    const __m256i a = _mm256_set1_epi32(((const int32_t *)(acts + (size_t)m * stride))[j]);
    const __m256i x = _mm256_maddubs_epi16(w_low, a), y = _mm256_maddubs_epi16(w_high, a);
    low[m] = is_first ? x : _mm256_add_epi16(low[m], x);
    high[m] = is_first ? y : _mm256_add_epi16(high[m], y);
    KEEP(low[m]);
    KEEP(high[m]);
  }
}

INLINE void widen(int is_first, int rows, const __m256i *low, const __m256i *high, i32x16 *sums) {
  const __m256i ones = _mm256_set1_epi16(1);
  UNROLL for (int m = 0; m < rows; m++) {
    const i32x8 x = (i32x8)_mm256_madd_epi16(low[m], ones);
    const i32x8 y = (i32x8)_mm256_madd_epi16(high[m], ones);
    sums[m].lo = is_first ? x : sums[m].lo + x;
    sums[m].hi = is_first ? y : sums[m].hi + y;
  }
}

// sums[m] = Σ over `count` quads of row m's bytes at acts + m * stride.
INLINE void add_narrow(int format, int count, int rows, const u8x64 *quads, const int8_t *acts,
                       size_t stride, i32x16 *sums) {
  const int at_once = quads_in_16_bits(format) < count ? quads_in_16_bits(format) : count;
  UNROLL for (int from = 0; from < count; from += at_once) {
    __m256i low[MOST_ROWS], high[MOST_ROWS];
    UNROLL for (int j = from; j < from + at_once; j++)
      add_pairs(j == from, rows, (__m256i)quads[j].lo, (__m256i)quads[j].hi, acts, stride, j, low,
                high);
    widen(from == 0, rows, low, high, sums);
  }
}

// The same of a block of nibbles at p, each taken out where it is multiplied; of one plane, or
// two `apart` bytes from each other: sums of the second in `seconds`.
INLINE void add_nibbles(int planes, int rows, const uint8_t *p, const int8_t *acts, size_t stride,
                        size_t apart, i32x16 *sums, i32x16 *seconds) {
  const __m256i mask = _mm256_set1_epi8(15);
  __m256i low[2][MOST_ROWS], high[2][MOST_ROWS];
  UNROLL for (int j = 0; j < 8; j += 2) {
    __m256i v_low = _mm256_loadu_si256((const __m256i *)(p + 32 * j));
    __m256i v_high = _mm256_loadu_si256((const __m256i *)(p + 32 * j + 32));
    UNROLL for (int i = 0; i < 2; i++) {
      const __m256i w_low = _mm256_and_si256(v_low, mask), w_high = _mm256_and_si256(v_high, mask);
      UNROLL for (int plane = 0; plane < planes; plane++)
        add_pairs(j + i == 0, rows, w_low, w_high, acts + (size_t)plane * apart, stride, j + i,
                  low[plane], high[plane]);
      v_low = _mm256_srli_epi16(v_low, 4);
      v_high = _mm256_srli_epi16(v_high, 4);
    }
  }
  widen(1, rows, low[0], high[0], sums);
  if (planes == 2) widen(1, rows, low[1], high[1], seconds);
}

// sums[m] = Σ over a block of nibbles, at p, of row m's bytes at acts + m * stride.
INLINE void dot_rows(int format, int rows, const uint8_t *p, const Block *block,
                     const int8_t *acts, size_t stride, i32x16 *sums) {
  (void)format;
  (void)block;
  add_nibbles(1, rows, p, acts, stride, 0, sums, NULL);
}

// sums[m] = Σ over eight quads of row m's 16-bit integers at acts + m * stride (bytes).
INLINE void add_wide(int rows, const u8x64 *quads, const int8_t *acts, size_t stride,
                     i32x16 *sums) {
  UNROLL for (int half = 0; half < 2; half++) {
    __m256i first[MOST_ROWS], second[MOST_ROWS];  // of rows of the tile 0 to 3 and 4 to 7 of the half
    for (int m = 0; m < rows; m++) first[m] = second[m] = _mm256_setzero_si256();
    UNROLL for (int j = 0; j < 8; j++) {
      const __m256i bytes = (__m256i)(half ? quads[j].hi : quads[j].lo);
      const __m256i w_first = _mm256_cvtepu8_epi16(_mm256_castsi256_si128(bytes));
      const __m256i w_second = _mm256_cvtepu8_epi16(_mm256_extracti128_si256(bytes, 1));
      UNROLL for (int m = 0; m < rows; m++) {
        const __m256i a = _mm256_set1_epi64x(((const int64_t *)(acts + (size_t)m * stride))[j]);
        first[m] = _mm256_add_epi32(first[m], _mm256_madd_epi16(w_first, a));
        second[m] = _mm256_add_epi32(second[m], _mm256_madd_epi16(w_second, a));
        KEEP(first[m]);
        KEEP(second[m]);
      }
    }
    UNROLL for (int m = 0; m < rows; m++) {
      const __m256i pairs = _mm256_hadd_epi32(first[m], second[m]);
      const i32x8 sum = (i32x8)_mm256_permute4x64_epi64(pairs, 0xD8);
      if (half) sums[m].hi = sum;
      else sums[m].lo = sum;
    }
  }
}

// sums[m] = Σ over a part of a block of row m, both planes.
INLINE void add_planes(int format, int precision, int rows, const uint8_t *p, const Block *block,
                       size_t part, const ActivationRow *first, size_t stride, size_t column,
                       i32x16 *sums) {
  const int planes = num_planes(precision);
  const size_t apart = (size_t)(first->low - first->high);
  i32x16 seconds[MOST_ROWS];
  if (bits_of(format) == 4) {
    const int at_once = rows < MOST_ROWS / planes ? rows : MOST_ROWS / planes;
    UNROLL for (int m = 0; m < rows; m += at_once)
      add_nibbles(planes, at_once, p, first->high + column + (size_t)m * stride, stride, apart,
                  sums + m, seconds + m);
  } else {
    const int quads = is_halved(format) ? 4 : 8;
    add_narrow(format, quads, rows, block->quad + part * 4, first->high + column, stride, sums);
    if (planes == 2)
      add_narrow(format, quads, rows, block->quad + part * 4, first->low + column, stride, seconds);
  }
  if (planes == 2)
    UNROLL for (int m = 0; m < rows; m++) sums[m] = (sums[m] << precision) + seconds[m];
}

// acc[m] += row m times block b, whose elements lie at p.
INLINE void add_block(int format, int with_offset, int precision, int rows, const uint8_t *p,
                      const Block *block, const ActivationRow *first, size_t stride, size_t b,
                      f32x16 *acc) {
  const size_t parts = is_halved(format) ? 2 : 1;
  UNROLL for (size_t part = 0; part < parts; part++) {
    const size_t column = b * BLOCK + part * 16;
    i32x16 sums[MOST_ROWS];
    if (is_wide(format))
      add_wide(rows, block->quad, first->high + 2 * column, stride, sums);
    else
      add_planes(format, precision, rows, p, block, part, first, stride, column, sums);
    UNROLL for (int m = 0; m < rows; m++) {
      const size_t at = (size_t)m * stride;
      const int32_t *offset = (const int32_t *)((const uint8_t *)first->offset + at) + b * parts;
      const float scale = ((const float *)((const uint8_t *)first->scale + at))[b];
      if (with_offset) sums[m] += splat_i32(offset[part]);
      const f32x16 scale_w = part ? block->second : block->scale;
      acc[m] = fma16(to_f32(sums[m]), scale_w * splat(scale), acc[m]);
    }
  }
  if (has_min(format)) {
    UNROLL for (int m = 0; m < rows; m++) {
      const uint8_t *sums = (const uint8_t *)first->scaled_sum + (size_t)m * stride;
      acc[m] = fma16(block->min, splat(((const float *)sums)[b]), acc[m]);
    }
  }
}

#endif
