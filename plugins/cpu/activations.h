// Activations as a matmul reads them: rows of bytes in blocks of 32.
//
//   x'[k]  = x[k] * (1 / sqrt(mean(x²) + eps)) * norm[k]      or x[k] where there is no norm
//   q[k]   = nearest(x'[k] / scale[b])                        b = k / 32
//   scale  = max |x'| over the block / LARGEST
//   scaled_sum = scale * Σ q over the block
//
//           planes                  LARGEST   low
//   int8    high                    127
//   int12   q = 16 high + low       2032      -8 … 7
//   int16   q = 256 high + low      32512     -128 … 127
//   int8_16 high, and in blocks with an outlier, max |x'| > OUTLIER * sqrt(mean(x'²)) of the row,
//           low = nearest((x' - scale high) / (scale / 254)): of what was rounded off
//
// Planes are signed bytes: more bits at the price of a second byte product, with no widening
// of the weights.  int12 is for weights of four bits: 16 w is a byte as well, so that one tile
// product of AMX takes both planes (matmul_amx.h).
//
// f32:   x' itself.
// bf16:  x' rounded to bfloat16, to nearest and even; but for WITH_BF16 as float32.
//
// A row in scratch, padded to whole cache lines:
//   integers:    high int8[K] | low int8[K]? | scale f32[K/32] | scaled_sum f32[K/32]
//                | offset i32[K/32], or [K/32, 2]: room for 2
//                with AVX2 room for low is always there, and q int16[K] for formats that are wide
//   offset: -zero Σ q over the block, or over each half of it; zero: of the weight's bytes
//   int8_16:     as int8, but for scaled_sum, which is of both planes; from the next cache line on
//                low int8[K] | its offsets i32[K/32] | bits u32[K/1024], of block b bit b % 32 of
//                word b / 32: whether there is anything in the low plane
//   f32, bf16:   f32[K], or bf16[K] | Σ x' of a block f32[K/32]
#ifndef LLMIR_ACTIVATIONS_H
#define LLMIR_ACTIVATIONS_H

#include "blocks.h"
#include "simd.h"

// INT8, INT12, INT16: how far the high plane is shifted.
enum { INT8 = 0, INT12 = 4, INT16 = 8, INT8_16, FLOAT32 = 32, BFLOAT16 };
#define OUTLIER 8.0f
#define LOW_STEPS 254.0f  // of a low plane, in one of the high

INLINE int num_planes(int precision) { return precision == INT8 ? 1 : 2; }

// Whether a format's kernels read the integers of a row as int16[K], in the place of its planes.
INLINE int is_wide(int format) {
#if defined(ONLY_AVX2)
  return !bytes_are_small(format);
#else
  (void)format;
  return 0;
#endif
}
// Bytes of an integer in a row: with AVX2 of every precision two, as any may be wide.
INLINE size_t stored_bytes(int precision) {
#if defined(ONLY_AVX2)
  (void)precision;
  return 2;
#else
  return (size_t)num_planes(precision);
#endif
}

typedef struct {
  const int8_t *high, *low;  // [K]; low is not there for int8
  const float *scale;        // [K/32]
  const float *scaled_sum;   // [K/32]
  const int32_t *offset;     // [K/32, parts]
} ActivationRow;

// An odd number of cache lines: rows a power of two apart would want the same place in a cache.
INLINE size_t lines(size_t bytes) { return (bytes + 63) / 64; }
INLINE size_t lines_of_int8(size_t k) { return lines(stored_bytes(INT8) * k + 16 * (k / BLOCK)); }
INLINE size_t row_bytes(size_t k, int precision) {
  const size_t blocks = k / BLOCK;
  if (precision == INT8_16)
    return (lines_of_int8(k) + lines(k + 4 * blocks + (blocks + 31) / 32 * 4) | 1) * 64;
  const size_t bytes =
      precision >= FLOAT32 ? 4 * k + 4 * blocks : stored_bytes(precision) * k + 16 * blocks;
  return (lines(bytes) | 1) * 64;
}

INLINE ActivationRow activation_row(const uint8_t *row, size_t k, int precision) {
  const float *scale = (const float *)(row + stored_bytes(precision) * k);
  return (ActivationRow){
      .high = (const int8_t *)row,
      .low = (const int8_t *)row + k,
      .scale = scale,
      .scaled_sum = scale + k / BLOCK,
      .offset = (const int32_t *)(scale + 2 * (k / BLOCK)),
  };
}

// What a row of int8_16 has beside that of int8.
typedef struct {
  int8_t *low;      // [K]
  int32_t *offset;  // [K/32]
  uint32_t *fine;   // bits [K/32]
} LowPlane;

INLINE LowPlane low_plane(const uint8_t *row, size_t k) {
  int8_t *low = (int8_t *)row + lines_of_int8(k) * 64;
  int32_t *offset = (int32_t *)(low + k);
  return (LowPlane){low, offset, (uint32_t *)(offset + k / BLOCK)};
}

// 1 / sqrt(mean of squares + eps) of x[K]; K is a multiple of 16.
INLINE float rms_scale(const float *x, size_t k, float eps) {
  f32x16 squares = splat(0);
  for (size_t i = 0; i < k; i += LANES) {
    f32x16 v = load(x + i);
    squares = fma16(v, v, squares);
  }
  return 1.0f / sqrt_f32(sum16(squares) / (float)k + eps);
}

// One row x[K] into `row`, sixteen blocks at a time; norm is NULL where there is none.  zero and
// parts: for the offsets.  wide: as int16.
INLINE void quantize_row(const float *x, const float *norm, float eps, size_t k, int precision,
                         int zero, int parts, int wide, uint8_t *row) {
  const float limit = (float)(127 << precision);
  const f32x16 inverse_rms = norm ? splat(rms_scale(x, k, eps)) : splat(1);
  const ActivationRow out = activation_row(row, k, precision);
  const size_t blocks = k / BLOCK;
  for (size_t first = 0; first < blocks; first += LANES) {
    const size_t count = blocks - first < LANES ? blocks - first : LANES;
    f32x16 values[2 * LANES], largest[LANES];
    for (size_t i = 0; i < LANES; i++) {
      if (i >= count) {
        largest[i] = splat(0);
        continue;
      }
      const size_t at = (first + i) * BLOCK;
      f32x16 a = load(x + at), b = load(x + at + LANES);
      if (norm) {
        a = a * inverse_rms * load(norm + at);
        b = b * inverse_rms * load(norm + at + LANES);
      }
      values[2 * i] = a;
      values[2 * i + 1] = b;
      largest[i] = max16(abs16(a), abs16(b));
    }
    const f32x16 most = largest_of_each(largest);
    const f32x16 scale = most / splat(limit);
    const f32x16 inverse = most > splat(0) ? splat(limit) / most : splat(0);
    i32x16 sums[LANES], halves[LANES];
    for (size_t i = 0; i < LANES; i++) {
      if (i >= count) {
        sums[i] = halves[i] = splat_i32(0);
        continue;
      }
      const f32x16 factor = splat(inverse[i]);
      i32x16 qa = nearest(values[2 * i] * factor), qb = nearest(values[2 * i + 1] * factor);
      sums[i] = qa + qb;
      halves[i] = qa;
      const size_t at = (first + i) * BLOCK;
      if (wide) {
        int16_t *to = (int16_t *)row + at;
        *(i16x16_any *)to = __builtin_convertvector(qa, i16x16);
        *(i16x16_any *)(to + LANES) = __builtin_convertvector(qb, i16x16);
        continue;
      }
      if (precision != INT8) {
        const int middle = 1 << precision >> 1;
        i32x16 ha = (qa + middle) >> precision, hb = (qb + middle) >> precision;
        *(i8x16_any *)(out.low + at) = __builtin_convertvector(qa - (ha << precision), i8x16);
        *(i8x16_any *)(out.low + at + LANES) =
            __builtin_convertvector(qb - (hb << precision), i8x16);
        qa = ha;
        qb = hb;
      }
      *(i8x16_any *)(out.high + at) = __builtin_convertvector(qa, i8x16);
      *(i8x16_any *)(out.high + at + LANES) = __builtin_convertvector(qb, i8x16);
    }
    const i32x16 half = parts == 2 ? sum_of_each(halves) : splat_i32(0);
    const i32x16 sum = sum_of_each(sums);
    const f32x16 scaled_sum = scale * to_f32(sum);
    for (size_t i = 0; i < count; i++) {
      ((float *)out.scale)[first + i] = scale[i];
      ((float *)out.scaled_sum)[first + i] = scaled_sum[i];
      int32_t *offset = (int32_t *)out.offset + (first + i) * (size_t)parts;
      offset[0] = -zero * (parts == 2 ? half[i] : sum[i]);
      if (parts == 2) offset[1] = -zero * (sum[i] - half[i]);
    }
  }
}

// The low plane of a row that is rounded as int8; of formats that are not halved.
INLINE void round_low_plane(const float *x, const float *norm, float eps, size_t k, int zero,
                            uint8_t *row) {
  const float inverse_rms = norm ? rms_scale(x, k, eps) : 1;
  const ActivationRow out = activation_row(row, k, INT8);
  const LowPlane plane = low_plane(row, k);
  const size_t blocks = k / BLOCK;
  f32x16 squares = splat(0);
  for (size_t i = 0; i < k; i += LANES) {
    const f32x16 v = norm ? load(x + i) * load(norm + i) : load(x + i);
    squares = fma16(v, v, squares);
  }
  const float rms = sqrt_f32(sum16(squares) / (float)k) * inverse_rms;
  const f32x16 most = splat(OUTLIER * rms / 127);  // as a scale
  for (size_t i = 0; i < k; i += BLOCK) *(u8x32_any *)(plane.low + i) = (u8x32)(0);
  for (size_t b = 0; b < blocks; b++) plane.offset[b] = 0;
  for (size_t b = 0; b < blocks; b += 32) plane.fine[b / 32] = 0;
  for (size_t first = 0; first < blocks; first += LANES) {
    // Beyond the last block lie other numbers of the row.
    const size_t count = blocks - first < LANES ? blocks - first : LANES;
    uint32_t fine = bits_of_mask(load(out.scale + first) > most) & ((1u << count) - 1);
    plane.fine[first / 32] |= fine << first % 32;
    for (; fine; fine &= fine - 1) {
      const size_t b = first + (size_t)__builtin_ctz(fine);
      const float scale = out.scale[b];
      i32x16 sum = splat_i32(0);
      for (size_t at = b * BLOCK; at < (b + 1) * BLOCK; at += LANES) {
        const f32x16 high = to_f32(__builtin_convertvector(*(i8x16_any *)(out.high + at), i32x16));
        f32x16 v = load(x + at);
        if (norm) v = v * splat(inverse_rms) * load(norm + at);
        const i32x16 low = nearest(fma16(high, splat(-scale), v) * splat(LOW_STEPS / scale));
        *(i8x16_any *)(plane.low + at) = __builtin_convertvector(low, i8x16);
        sum += low;
      }
      const int32_t total = sum16_i32(sum);
      plane.offset[b] = -zero * total;
      ((float *)out.scaled_sum)[b] += scale / LOW_STEPS * (float)total;
    }
  }
}

// One row x[K] as floats.  `round`: to bfloat16; `narrow`: and stored as that.
INLINE void float_row(const float *x, const float *norm, float eps, size_t k, int round, int narrow,
                      uint8_t *row) {
  const f32x16 inverse_rms = norm ? splat(rms_scale(x, k, eps)) : splat(1);
  float *sums = (float *)row + k;
  for (size_t at = 0; at < k; at += BLOCK) {
    f32x16 pair[2];
    for (int i = 0; i < 2; i++) {
      const size_t from = at + (size_t)i * LANES;
      pair[i] = load(x + from);
      if (norm) pair[i] = pair[i] * inverse_rms * load(norm + from);
      if (round) {
        const u16x16 bits = to_bf16(pair[i]);
        if (narrow) *(u16x16_any *)(row + 2 * from) = bits;
        pair[i] = from_bf16(bits);
      }
      if (!narrow) store((float *)row + from, pair[i]);
    }
    sums[at / BLOCK] = sum16(pair[0] + pair[1]);
  }
}

#endif
