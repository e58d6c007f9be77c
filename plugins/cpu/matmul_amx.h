// Sixteen rows of activations times a tile of a packed matrix with AMX's tile multiply.
//
// The inner sums of a block are integers, so a tile multiply gives the very numbers that the
// vector instructions of multiply_tile give, and the float32 sums over the blocks are the same
// operations in the same order: a row has the same bits by either way.  Which one a chunk of
// rows takes is a question of speed alone.
//
//   C[16 rows, 16 columns] i32 = A[16 rows, width bytes] i8 × B[width / 4 quads, 16 columns × 4]
//
// B is of a panel, a tile taken apart, made once for all rows of a chunk:
//   width 32: a block's quads less their zero, signed; of int16 two products, 256 C_high + C_low
//   width 16: half of that, for formats that have two scales a block
//   width 64: int12.  A = [high | low], B = [16 quads; quads], which are bytes too: less their
//             zero and signed, or unsigned where there is no zero, which is where there are minima
//
// A panel: B of the blocks, 512 or 1024 bytes each | scale f32[K/32 or K/16, 16]
//          | min f32[K/32, 16]
#ifndef LLMIR_MATMUL_AMX_H
#define LLMIR_MATMUL_AMX_H

#include "activations.h"
#include "amx.h"
#include "multiply.h"

// Room for the panels of two tiles.
INLINE size_t panels_bytes(size_t k) { return 2 * (32 + 4 + 2) * k; }

#if defined(__AMX_INT8__)

#define AMX_LEAST_ROWS 5  // fewer are faster with vector instructions

typedef struct {
  uint8_t *quads;
  float *scale, *min;  // min where there is one
} Panel;

INLINE Panel panel_in(uint8_t *memory, size_t k) {
  float *scale = (float *)(memory + 32 * k);
  return (Panel){memory, scale, scale + k};
}

INLINE int amx_width(int format, int precision) {
  return precision == INT12 ? 2 * BLOCK : is_halved(format) ? BLOCK / 2 : BLOCK;
}

INLINE void unpack_panel(int format, int precision, const uint8_t *tile, size_t k,
                         uint8_t *memory) {
  const Panel out = panel_in(memory, k);
  const size_t scales = is_halved(format) ? 2 * LANES : LANES;
  uint8_t *to = out.quads;
  for (size_t b = 0; b < k / BLOCK; b++) {
    prefetch_after(format, tile, b);
    Block block;
    read_block(format, tile, b, &block);
    if (precision == INT12) {
      for (int j = 0; j < 8; j++)
        *(u8x64_any *)(to + 64 * j) = (block.quad[j] - (uint8_t)zero_of(format)) << 4;
      to += BLOCK_BYTES;
    }
    for (int j = 0; j < 8; j++)
      *(u8x64_any *)(to + 64 * j) = block.quad[j] - (uint8_t)zero_of(format);
    to += BLOCK_BYTES;
    store(out.scale + b * scales, block.scale);
    if (is_halved(format)) store(out.scale + b * scales + LANES, block.second);
    if (has_min(format)) store(out.min + b * LANES, block.min);
  }
}

#define UNPACK(name, format)                                                                   \
  NOINLINE void unpack_##name(int precision, const uint8_t *tile, size_t k, uint8_t *memory) { \
    unpack_panel(format, precision, tile, k, memory);                                          \
  }
QUANTISED_FORMATS(UNPACK)

INLINE void unpack(int format, int precision, const uint8_t *tile, size_t k, uint8_t *memory) {
#define UNPACK_CASE(name, format) case format: unpack_##name(precision, tile, k, memory); break;
  switch (format) { QUANTISED_FORMATS(UNPACK_CASE) default: break; }
}

// Tiles 0, 1: C of even and odd products.  2, 3: of the low plane of int16.  4: A.  5: of the
// low plane.  6: B.
NOINLINE void amx_configure(int width) {
  amx_ask();
  AmxConfig config __attribute__((aligned(64))) = amx_config();
  for (int i = 0; i < 7; i++) {
    config.bytes_per_row[i] = i == 4 || i == 5 ? (uint16_t)width : 64;
    config.rows[i] = i == 6 ? (uint8_t)(width / 4) : AMX_ROWS;
  }
  _tile_loadconfig(&config);
}

// Sixteen rows of activations as the tiles read them, block by block and without a gap:
//   high int8[16, 32] | low int8[16, 32]? | scale f32[16] | scaled_sum f32[16]
//   int12: high and low of a row beside each other, int8[16, 2, 32]
INLINE size_t amx_rows_bytes(int precision) {
  return (size_t)num_planes(precision) * AMX_ROWS * BLOCK;
}
INLINE size_t amx_rows_block_bytes(int precision) {
  return amx_rows_bytes(precision) + 2 * AMX_ROWS * 4;
}

INLINE void amx_pack_rows(const uint8_t *acts, size_t stride, size_t k, int precision,
                          uint8_t *out) {
  typedef UNALIGNED(VECTOR(uint8_t, 32)) u8x32_any;
  const size_t size = amx_rows_block_bytes(precision);
  const size_t step = precision == INT12 ? 2 * BLOCK : BLOCK;
  const size_t low = precision == INT12 ? BLOCK : AMX_ROWS * BLOCK;
  for (size_t m = 0; m < AMX_ROWS; m++) {
    const ActivationRow row = activation_row(acts + m * stride, k, precision);
    for (size_t b = 0; b < k / BLOCK; b++) {
      uint8_t *block = out + b * size;
      *(u8x32_any *)(block + m * step) = *(const u8x32_any *)(row.high + b * BLOCK);
      if (precision != INT8)
        *(u8x32_any *)(block + low + m * step) = *(const u8x32_any *)(row.low + b * BLOCK);
      float *scales = (float *)(block + amx_rows_bytes(precision));
      scales[m] = row.scale[b];
      scales[AMX_ROWS + m] = row.scaled_sum[b];
    }
  }
}

// What a product reads: rows from amx_pack_rows, and a panel's quads.
typedef struct {
  const uint8_t *rows, *quads;
} AmxOperands;

// C of product p into tile `c`, and of the low plane into c + 2: begun, not waited for.
#define AMX_BEGIN(c, from, p)                                                             \
  do {                                                                                    \
    const uint8_t *a = (from).rows + (p) / of_block * amx_rows_block_bytes(precision) +   \
                       (p) % of_block * (size_t)width;                                    \
    _tile_loadd(6, (from).quads + (p) * (size_t)width * LANES, 64);                       \
    _tile_loadd(4, a, precision == INT12 ? 2 * BLOCK : BLOCK);                            \
    _tile_zero(c);                                                                        \
    if (precision == INT12 && with_min)                                                   \
      _tile_dpbsud(c, 4, 6);                                                              \
    else                                                                                  \
      _tile_dpbssd(c, 4, 6);                                                              \
    if (precision == INT16) {                                                             \
      _tile_loadd(5, a + AMX_ROWS * BLOCK, BLOCK);                                        \
      _tile_zero(c + 2);                                                                  \
      _tile_dpbssd(c + 2, 5, 6);                                                          \
    }                                                                                     \
  } while (0)

// … and to memory.
#define AMX_STORE(c)                                             \
  do {                                                           \
    _tile_stored(c, high[c], 64);                                \
    if (precision == INT16) _tile_stored(c + 2, low[c], 64);     \
  } while (0)

// acc[m] += row m times a block, whose sums are in memory.
INLINE void amx_scale_block(int with_min, int precision, const float *scale, const float *min,
                            const float *scales, const int32_t *high, const int32_t *low,
                            f32x16 *acc) {
  const f32x16 scale_w = load(scale);
  const f32x16 min_w = with_min ? load(min) : splat(0);
#pragma clang loop unroll(full)
  for (int m = 0; m < AMX_ROWS; m++) {
    i32x16 sum = *(const i32x16 *)(high + m * LANES);
    if (precision == INT16) sum = (sum << 8) + *(const i32x16 *)(low + m * LANES);
    acc[m] = fma16(to_f32(sum), scale_w * splat(scales[m]), acc[m]);
    if (with_min) acc[m] = fma16(min_w, splat(scales[16 + m]), acc[m]);
  }
}

// out[m] = row m times a tile.  The tiles work two blocks ahead of the vectors, for a product
// takes its time: past the last block, on the first two of what follows.
typedef struct {
  int32_t high[2][AMX_ROWS * LANES], low[2][AMX_ROWS * LANES];
} AmxSums;

INLINE void amx_multiply_tile(int width, int with_min, int precision, size_t k, AmxOperands now,
                              AmxOperands following, int begun, const Panel *panel, AmxSums *sums,
                              float *out) {
  const float *scales = (const float *)(now.rows + amx_rows_bytes(precision));
  const size_t scales_step = amx_rows_block_bytes(precision) / 4;
  int32_t(*high)[AMX_ROWS * LANES] = sums->high, (*low)[AMX_ROWS * LANES] = sums->low;
  const size_t of_block = width < BLOCK ? 2 : 1, products = k / BLOCK * of_block;
  f32x16 acc[AMX_ROWS];
  for (int m = 0; m < AMX_ROWS; m++) acc[m] = splat(0);
  if (!begun) {
    AMX_BEGIN(0, now, 0);
    AMX_STORE(0);
    AMX_BEGIN(1, now, products > 1 ? 1 : 0);
    AMX_STORE(1);
  }
  for (size_t p = 0; p < products; p += 2) {
    const int last = p + 2 >= products;
    const AmxOperands *from = last ? &following : &now;
    const size_t next = last ? 0 : p + 2, after = last || p + 3 < products ? next + 1 : next;
    AMX_BEGIN(0, *from, next);
    amx_scale_block(with_min, precision, panel->scale + p * LANES, panel->min + p * LANES,
                    scales + p / of_block * scales_step, high[0], low[0], acc);
    AMX_STORE(0);
    if (p + 1 == products) break;
    AMX_BEGIN(1, *from, after < products ? after : 0);
    amx_scale_block(with_min, precision, panel->scale + (p + 1) * LANES,
                    panel->min + (p + 1) * LANES, scales + (p + 1) / of_block * scales_step, high[1],
                    low[1], acc);
    AMX_STORE(1);
  }
  for (int m = 0; m < AMX_ROWS; m++) store(out + m * LANES, acc[m]);
}

#define AMX_MULTIPLY(name, width, with_min, precision)                                           \
  NOINLINE void name(size_t k, AmxOperands now, AmxOperands following, int begun,                \
                     const Panel *panel, AmxSums *sums, float *out) {                            \
    amx_multiply_tile(width, with_min, precision, k, now, following, begun, panel, sums, out);   \
  }
AMX_MULTIPLY(amx_multiply_int8, 32, 0, INT8)
AMX_MULTIPLY(amx_multiply_int12, 64, 0, INT12)
AMX_MULTIPLY(amx_multiply_int16, 32, 0, INT16)
AMX_MULTIPLY(amx_multiply_min_int8, 32, 1, INT8)
AMX_MULTIPLY(amx_multiply_min_int12, 64, 1, INT12)
AMX_MULTIPLY(amx_multiply_min_int16, 32, 1, INT16)
AMX_MULTIPLY(amx_multiply_halved_int8, 16, 0, INT8)
AMX_MULTIPLY(amx_multiply_halved_int16, 16, 0, INT16)

// Rows 0 … rows - 1, in sixteens, times `parts` tiles one after the other: out f32[parts,
// part_rows, 16].  The last rows may be of zeros that nobody wants.
// `packed`: amx_pack_rows' of them all; `memory`: room for the tiles' panels.
INLINE void amx_multiply_unit(int format, int precision, int parts, size_t rows,
                              const uint8_t *packed, size_t k, const uint8_t *unit, uint8_t *memory, size_t part_rows,
                              float *out) {
  const size_t packed_bytes = k / BLOCK * amx_rows_block_bytes(precision), panel_bytes = panels_bytes(k) / 2;
  AmxSums sums __attribute__((aligned(64)));
  for (int part = 0; part < parts; part++)
    unpack(format, precision, unit + (size_t)part * tile_bytes(format, k), k,
           memory + (size_t)part * panel_bytes);
  // Tiles whose blocks are odd in number leave the two halves of `sums` the wrong way round.
  const int chained = is_halved(format) || k / BLOCK % 2 == 0;
  int begun = 0;
  for (size_t row = 0; row < rows; row += AMX_ROWS)
    for (int part = 0; part < parts; part++) {
      const Panel panel = panel_in(memory + (size_t)part * panel_bytes, k);
      const AmxOperands now = {packed + row / AMX_ROWS * packed_bytes, panel.quads};
      AmxOperands following = now;
      if (part + 1 < parts) {
        following.quads += panel_bytes;
      } else if (row + AMX_ROWS < rows) {
        following.rows += packed_bytes;
        following.quads = memory;
      }
      float *to = out + ((size_t)part * part_rows + row) * LANES;
#define AMX_CALL(name) name(k, now, following, begun, &panel, &sums, to)
      if (is_halved(format)) {
        if (precision == INT8) AMX_CALL(amx_multiply_halved_int8);
        else AMX_CALL(amx_multiply_halved_int16);
      } else if (has_min(format)) {
        if (precision == INT8) AMX_CALL(amx_multiply_min_int8);
        else if (precision == INT12) AMX_CALL(amx_multiply_min_int12);
        else AMX_CALL(amx_multiply_min_int16);
      } else {
        if (precision == INT8) AMX_CALL(amx_multiply_int8);
        else if (precision == INT12) AMX_CALL(amx_multiply_int12);
        else AMX_CALL(amx_multiply_int16);
      }
      begun = chained;
    }
}

#endif
#endif
