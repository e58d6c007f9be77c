// Rows of float activations times a tile of any matrix.
//
//   sum_b  = fma over the columns of b in their order, of u[n, k] - zero or w[n, k], and x'[t, k]
//   y[t,n] = Σ_b fma(scale[n, b], sum_b, …), fma(min[n, b], Σ_k∈b x'[t, k], …)
//
// all in float32, b as in multiply.h; a float format's scale is 1.  Again few rows widen the
// tile in registers, and for more of them a piece of it is widened in scratch memory first.
//
// A piece, FLOAT_PIECE blocks at most: columns f32[n, 32, 16] | Block scales f32[n, 3, 16]
//
// bf16 × bf16 with an instruction for that (WITH_BF16): pairs of columns in their order, by
// dot2_bf16 and block sums as above, or by AMX's tiles, a chain over all of K, for every T.
#ifndef LLMIR_MULTIPLY_FLOAT_H
#define LLMIR_MULTIPLY_FLOAT_H

#include "amx.h"
#include "multiply.h"

#define FLOAT_PIECE 16
#define FLOAT_PIECE_BYTES (FLOAT_PIECE * (BLOCK + 3) * LANES * sizeof(float))
#define FLOAT_FEW 4
#if defined(__AVX512F__)
#define FLOAT_ROWS 12  // accumulators and sums of so many fit into the registers
#else
#define FLOAT_ROWS 6
#endif
#if defined(__AVX512BF16__)
#define WITH_BF16 1
#else
#define WITH_BF16 0
#endif

INLINE int reads_pairs(int format, int precision) {
  return WITH_BF16 && format == BF16 && precision == BFLOAT16;
}

typedef struct {
  f32x16 column[4];
} Columns;

// Columns 4j … 4j + 3 of a block at p, of a float format.
INLINE Columns float_columns(int format, const uint8_t *p, int j) {
  Columns out;
  if (format == BF16) {
    for (int i = 0; i < 2; i++) {
      const u32x16 pair = *(const u32x16_any *)(p + 64 * (2 * j + i));
      out.column[2 * i] = (f32x16)(pair << 16);
      out.column[2 * i + 1] = (f32x16)(pair & 0xFFFF0000);
    }
    return out;
  }
  for (int i = 0; i < 4; i++)
    out.column[i] = format == F16 ? load_f16(p + 32 * (4 * j + i)) : load_f32(p + 64 * (4 * j + i));
  return out;
}

// … of a quad of bytes less their zero.
INLINE Columns quad_columns(u8x64 quad, int zero) {
  const i32x16 bytes = (i32x16)(quad - (uint8_t)zero);
  Columns out;
  for (int i = 0; i < 4; i++) out.column[i] = to_f32((bytes << (24 - 8 * i)) >> 24);
  return out;
}

INLINE void block_columns(int format, const uint8_t *tile, size_t b, Block *block, Columns *out) {
  if (format != F32) prefetch_after(format, tile, b);  // of f32 the hardware sees enough itself
  if (is_float(format)) {
    const uint8_t *p = tile + b * element_bytes(format);
    for (int j = 0; j < 8; j++) out[j] = float_columns(format, p, j);
    block->scale = splat(1);
    return;
  }
  read_block(format, tile, b, block);
  for (int j = 0; j < 8; j++) out[j] = quad_columns(block->quad[j], zero_of(format));
}

INLINE const float *float_at(const uint8_t *acts, size_t stride, int m, size_t at) {
  return (const float *)(acts + (size_t)m * stride) + at;
}

// Few rows times a tile as it is packed.
INLINE void multiply_float_tile(int format, int rows, const uint8_t *acts, size_t stride, size_t k,
                                const uint8_t *tile, float *out) {
  f32x16 acc[rows];
  for (int m = 0; m < rows; m++) acc[m] = splat(0);
  for (size_t b = 0; b < k / BLOCK; b++) {
    Block block;
    Columns columns[8];
    block_columns(format, tile, b, &block, columns);
    f32x16 sum[rows];
    for (int m = 0; m < rows; m++) sum[m] = splat(0);
#pragma clang loop unroll(full)
    for (int j = 0; j < 8; j++) {
      for (int m = 0; m < rows; m++)
        for (int i = 0; i < 4; i++)
          sum[m] = fma16(columns[j].column[i],
                         splat(*float_at(acts, stride, m, b * BLOCK + 4 * j + i)), sum[m]);
      if (is_halved(format) && j == 3)
        for (int m = 0; m < rows; m++) {
          acc[m] = fma16(block.scale, sum[m], acc[m]);
          sum[m] = splat(0);
        }
    }
    for (int m = 0; m < rows; m++) {
      acc[m] = fma16(is_halved(format) ? block.second : block.scale, sum[m], acc[m]);
      if (has_min(format))
        acc[m] = fma16(block.min, splat(*float_at(acts, stride, m, k + b)), acc[m]);
    }
  }
  for (int m = 0; m < rows; m++) store(out + m * LANES, acc[m]);
}

// Rows times `blocks` blocks of a piece, from block `start` of the row on; adds to `out`.
INLINE void multiply_piece_rows(int rows, int halved, int with_min, const uint8_t *acts,
                                size_t stride, size_t k, size_t start, size_t blocks,
                                const float *columns, const float *scales, float *out) {
  const size_t part = halved ? LANES : BLOCK;
  f32x16 acc[rows];
  for (int m = 0; m < rows; m++) acc[m] = load(out + m * LANES);
  for (size_t b = 0; b < blocks; b++) {
    for (size_t from = 0; from < BLOCK; from += part) {
      f32x16 sum[rows];
      for (int m = 0; m < rows; m++) sum[m] = splat(0);
#pragma clang loop unroll_count(4)
      for (size_t i = from; i < from + part; i++) {
        const f32x16 w = load(columns + (b * BLOCK + i) * LANES);
        for (int m = 0; m < rows; m++)
          sum[m] = fma16(w, splat(*float_at(acts, stride, m, (start + b) * BLOCK + i)), sum[m]);
      }
      const f32x16 scale = scales ? load(scales + (b * 3 + (from ? 1 : 0)) * LANES) : splat(1);
      for (int m = 0; m < rows; m++) acc[m] = fma16(scale, sum[m], acc[m]);
    }
    if (with_min) {
      const f32x16 min = load(scales + (b * 3 + 2) * LANES);
      for (int m = 0; m < rows; m++)
        acc[m] = fma16(min, splat(*float_at(acts, stride, m, k + start + b)), acc[m]);
    }
  }
  for (int m = 0; m < rows; m++) store(out + m * LANES, acc[m]);
}

NOINLINE void multiply_piece(int halved, int with_min, size_t rows, const uint8_t *acts,
                             size_t stride, size_t k, size_t start, size_t blocks,
                             const float *columns, const float *scales, float *out) {
  size_t row = 0;
#define PIECE_ROWS(n)                                                                             \
  for (; row + n <= rows; row += n)                                                               \
    multiply_piece_rows(n, halved, with_min, acts + row * stride, stride, k, start, blocks, columns, \
                        scales, out + row * LANES);
  PIECE_ROWS(FLOAT_ROWS)
  PIECE_ROWS(4)
  PIECE_ROWS(1)
}

// Blocks start … start + blocks - 1 of a tile as a piece.
INLINE void widen_piece(int format, const uint8_t *tile, size_t start, size_t blocks, float *memory) {
  float *scales = memory + FLOAT_PIECE * BLOCK * LANES;
  for (size_t b = 0; b < blocks; b++) {
    Block block;
    Columns columns[8];
    block_columns(format, tile, start + b, &block, columns);
    for (int j = 0; j < 8; j++)
      for (int i = 0; i < 4; i++)
        store(memory + (b * BLOCK + 4 * j + i) * LANES, columns[j].column[i]);
    store(scales + b * 3 * LANES, block.scale);
    if (is_halved(format)) store(scales + (b * 3 + 1) * LANES, block.second);
    if (has_min(format)) store(scales + (b * 3 + 2) * LANES, block.min);
  }
}

#define MULTIPLY_FLOAT(name, format)                                                              \
  MULTIPLY_FEW_FLOATS(name, format)                                                               \
  NOINLINE void widen_##name(const uint8_t *tile, size_t start, size_t blocks, float *memory) {   \
    widen_piece(format, tile, start, blocks, memory);                                             \
  }
#define MULTIPLY_FEW_FLOATS(name, format)                                                         \
  NOINLINE void multiply_float_##name(size_t rows, const uint8_t *acts, size_t stride, size_t k,  \
                                      const uint8_t *tile, float *out) {                          \
    if (rows == 4) multiply_float_tile(format, 4, acts, stride, k, tile, out);                    \
    else if (rows == 2) multiply_float_tile(format, 2, acts, stride, k, tile, out);               \
    else multiply_float_tile(format, 1, acts, stride, k, tile, out);                              \
  }
QUANTISED_FORMATS(MULTIPLY_FLOAT)
MULTIPLY_FLOAT(f16, F16)
MULTIPLY_FLOAT(bf16, BF16)
MULTIPLY_FEW_FLOATS(f32, F32)

// out[m] = row m times a tile.  `memory`: FLOAT_PIECE_BYTES.
INLINE void multiply_float(int format, size_t rows, const uint8_t *acts, size_t stride, size_t k,
                           const uint8_t *tile, float *memory, float *out) {
#define FLOAT_CASE(name, format) \
  case format: multiply_float_##name(count, acts, stride, k, tile, out); break;
#define WIDEN_CASE(name, format) case format: widen_##name(tile, at, blocks, memory); break;
  if (rows <= FLOAT_FEW) {
    for (size_t count; rows; rows -= count) {
      count = rows == 4 ? 4 : rows >= 2 ? 2 : 1;
      switch (format) { QUANTISED_FORMATS(FLOAT_CASE) FLOAT_FORMATS(FLOAT_CASE) default: break; }
      acts += count * stride;
      out += count * LANES;
    }
    return;
  }
  for (size_t m = 0; m < rows; m++) store(out + m * LANES, splat(0));
  for (size_t at = 0; at < k / BLOCK; at += FLOAT_PIECE) {
    const size_t left = k / BLOCK - at, blocks = left < FLOAT_PIECE ? left : FLOAT_PIECE;
    const float *columns = memory, *scales = memory + FLOAT_PIECE * BLOCK * LANES;
    switch (format) {
      QUANTISED_FORMATS(WIDEN_CASE)
      WIDEN_CASE(f16, F16)
      WIDEN_CASE(bf16, BF16)
      default: columns = (const float *)tile + at * BLOCK * LANES;  // f32 is one piece already
    }
    multiply_piece(is_halved(format), has_min(format), rows, acts, stride, k, at, blocks, columns,
                   is_float(format) ? NULL : scales, out);
  }
}

#if defined(__AMX_BF16__)

#define AMX_BF16_TILES 4  // of rows, each with a tile of sums

NOINLINE void amx_configure_bf16(void) {
  amx_ask();
  AmxConfig config __attribute__((aligned(64))) = amx_config();
  for (int i = 0; i < 8; i++) {
    config.bytes_per_row[i] = 64;
    config.rows[i] = AMX_ROWS;
  }
  _tile_loadconfig(&config);
}

// Tiles 0 … 3: sums; 4, 5: activations; 6, 7: weights, of even and odd blocks.
#define AMX_BF16_STEP(t, a, w)                                                 \
  if (tiles > t) {                                                             \
    _tile_loadd(a, acts + t * AMX_ROWS * stride + b * 64, stride);             \
    _tile_dpbf16ps(t, a, w);                                                   \
  }
#define AMX_BF16_STORE(t) \
  if (tiles > t) _tile_stored(t, out + t * AMX_ROWS * LANES, 64);

INLINE void amx_multiply_pairs(int tiles, const uint8_t *acts, size_t stride, size_t k,
                               const uint8_t *tile, float *out) {
  _tile_zero(0);
  if (tiles > 1) _tile_zero(1);
  if (tiles > 2) _tile_zero(2);
  if (tiles > 3) _tile_zero(3);
  for (size_t b = 0; b < k / BLOCK; b++) {
    prefetch_after(BF16, tile, b);
    _tile_loadd(6, tile + b * 1024, 64);
    AMX_BF16_STEP(0, 4, 6)
    AMX_BF16_STEP(1, 5, 6)
    AMX_BF16_STEP(2, 4, 6)
    AMX_BF16_STEP(3, 5, 6)
  }
  AMX_BF16_STORE(0)
  AMX_BF16_STORE(1)
  AMX_BF16_STORE(2)
  AMX_BF16_STORE(3)
}

// out[m] = row m times a tile; there is room for whole sixteens of rows in acts and out.
NOINLINE void multiply_pairs(size_t rows, const uint8_t *acts, size_t stride, size_t k,
                             const uint8_t *tile, float *out) {
  const size_t step = AMX_ROWS * AMX_BF16_TILES;
  for (size_t row = 0; row < rows; row += step) {
    const uint8_t *from = acts + row * stride;
    const size_t left = rows - row, tiles = (left + AMX_ROWS - 1) / AMX_ROWS;
    float *to = out + row * LANES;
    if (tiles == 1) amx_multiply_pairs(1, from, stride, k, tile, to);
    else if (tiles == 2) amx_multiply_pairs(2, from, stride, k, tile, to);
    else if (tiles == 3) amx_multiply_pairs(3, from, stride, k, tile, to);
    else amx_multiply_pairs(4, from, stride, k, tile, to);
  }
}

#elif WITH_BF16

INLINE void multiply_pairs_rows(int rows, const uint8_t *acts, size_t stride, size_t k,
                                const uint8_t *tile, float *out) {
  f32x16 acc[rows];
  for (int m = 0; m < rows; m++) acc[m] = splat(0);
  for (size_t b = 0; b < k / BLOCK; b++) {
    f32x16 sum[rows];
    for (int m = 0; m < rows; m++) sum[m] = splat(0);
    if (rows <= 4) prefetch_after(BF16, tile, b);
#pragma clang loop unroll_count(4)
    for (size_t pair = 0; pair < BLOCK / 2; pair++) {
      const u32x16 w = *(const u32x16_any *)(tile + b * 1024 + 64 * pair);
      for (int m = 0; m < rows; m++)
        sum[m] = dot2_bf16(sum[m], w,
                           ((const uint32_t *)(acts + (size_t)m * stride))[b * BLOCK / 2 + pair]);
    }
    for (int m = 0; m < rows; m++) acc[m] = acc[m] + sum[m];
  }
  for (int m = 0; m < rows; m++) store(out + m * LANES, acc[m]);
}

NOINLINE void multiply_pairs(size_t rows, const uint8_t *acts, size_t stride, size_t k,
                             const uint8_t *tile, float *out) {
  size_t row = 0;
#define PAIR_ROWS(n)                \
  for (; row + n <= rows; row += n) \
    multiply_pairs_rows(n, acts + row * stride, stride, k, tile, out + row * LANES);
  PAIR_ROWS(12)
  PAIR_ROWS(4)
  PAIR_ROWS(2)
  PAIR_ROWS(1)
}

#endif
#endif
