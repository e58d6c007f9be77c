// What attention_rows.h computes, of sixteen rows and bfloat16 pages with AMX's tile multiply.
#ifndef LLMIR_ATTENTION_AMX_H
#define LLMIR_ATTENTION_AMX_H

#include "attention_rows.h"

#if defined(__AMX_BF16__)
// Tiles 0–3: C.  4, 5: queries [16 rows, 32 dims] × K [16 pairs of dims, 16 positions].
// 6, 7: weights [16 rows, 16 positions] × V [8 pairs of positions, 16 dims].
INLINE void amx_configure_attention(void) {
  amx_ask();
  AmxConfig config __attribute__((aligned(64))) = amx_config();
  for (int i = 0; i < 8; i++) {
    config.bytes_per_row[i] = i == 6 ? 32 : 64;
    config.rows[i] = i == 7 ? 8 : AMX_ROWS;
  }
  _tile_loadconfig(&config);
}

#define AMX_SCORE(c)                                                                    \
  if (is_there(block, c)) {                                                             \
    _tile_zero(c);                                                                      \
    for (size_t d = 0; d < dim; d += 32) {                                              \
      _tile_loadd(4, (const uint16_t *)tile->q + row * dim + d, (long)dim * 2);         \
      _tile_loadd(5, block->k[c] + d / 2 * page_size * 4, (long)page_size * 4);         \
      _tile_dpbf16ps(c, 4, 5);                                                          \
    }                                                                                   \
    _tile_stored(c, s + c * LANES, KV_BLOCK * 4);                                       \
  }

#define AMX_WEIGH(c, v, v_stride)                       \
  do {                                                   \
    _tile_loadd(7, (v) + c * LANES * 4, v_stride);        \
    _tile_dpbf16ps(c, 6, 7);                              \
  } while (0)

// sums[16 rows from `row` on, dims d … d + 31, or 63 if wide] += p V over the block.
INLINE void amx_weigh(int wide, Tile *tile, size_t row, const float *p, const KvBlock *block,
                      size_t d) {
  const long dim = (long)tile->dim;
  float *sums = tile->sums + row * tile->dim + d;
  _tile_loadd(0, sums, dim * 4);
  _tile_loadd(1, sums + LANES, dim * 4);
  if (wide) {
    _tile_loadd(2, sums + 2 * LANES, dim * 4);
    _tile_loadd(3, sums + 3 * LANES, dim * 4);
  }
  for (size_t sixteen = 0; sixteen < KV_BLOCK / LANES; sixteen++) {
    if (!is_there(block, sixteen)) continue;
    _tile_loadd(6, (const uint16_t *)p + sixteen * LANES, KV_BLOCK * 4);
    const uint8_t *v = block->v[sixteen] + d * 4;
    const size_t at = block->start + sixteen * LANES;
    long stride = dim * 4;
    // Of positions that are not the tile's, V may be anything, and 0 times NaN is NaN.
    uint32_t kept[LANES / 2][4 * LANES] __attribute__((aligned(64)));
    if (at < block->from || at + LANES > block->to) {
      for (size_t pair = 0; pair < LANES / 2; pair++) {
        const size_t even = at + 2 * pair, odd = even + 1;
        const uint32_t keep = (even >= block->from && even < block->to ? 0xFFFFu : 0) |
                              (odd >= block->from && odd < block->to ? 0xFFFF0000u : 0);
        for (size_t i = 0; i < (wide ? 4 : 2); i++)
          *(u32x16 *)(kept[pair] + i * LANES) =
              *(const u32x16_any *)(v + pair * tile->dim * 4 + i * LANES * 4) & keep;
      }
      v = (const uint8_t *)kept;
      stride = 4 * LANES * 4;
    }
    AMX_WEIGH(0, v, stride);
    AMX_WEIGH(1, v, stride);
    if (wide) {
      AMX_WEIGH(2, v, stride);
      AMX_WEIGH(3, v, stride);
    }
  }
  _tile_stored(0, sums, dim * 4);
  _tile_stored(1, sums + LANES, dim * 4);
  if (wide) {
    _tile_stored(2, sums + 2 * LANES, dim * 4);
    _tile_stored(3, sums + 3 * LANES, dim * 4);
  }
}

// Sixteen rows from `row` on; those past the tile's are there in memory, and nobody's.
// A row of a tile product depends on that row of A alone: which rows are beside it is the same.
INLINE void amx_attend_rows(Tile *tile, size_t row, const KvBlock *block, size_t page_size) {
  const size_t dim = tile->dim;
  float s[AMX_ROWS * KV_BLOCK] __attribute__((aligned(64)));
  float p[AMX_ROWS * KV_BLOCK] __attribute__((aligned(64)));
  AMX_SCORE(0)
  AMX_SCORE(1)
  AMX_SCORE(2)
  AMX_SCORE(3)
  for (size_t r = 0; r < AMX_ROWS && row + r < tile->rows; r += 4) {
    f32x16 of_four[4][KV_BLOCK / LANES];
    const size_t rows = tile->rows - row - r < 4 ? tile->rows - row - r : 4;
    for (size_t i = 0; i < rows; i++)
      for (size_t c = 0; c < KV_BLOCK / LANES; c++)
        of_four[i][c] = is_there(block, c) ? load(s + (r + i) * KV_BLOCK + c * LANES)
                                           : splat(MINUS_INFINITY);
    float *p_of_four = p + r * KV_BLOCK;
    switch (rows) {
      case 4: soften(KV_BF16, 4, tile, row + r, block, of_four, p_of_four); break;
      case 3: soften(KV_BF16, 3, tile, row + r, block, of_four, p_of_four); break;
      case 2: soften(KV_BF16, 2, tile, row + r, block, of_four, p_of_four); break;
      default: soften(KV_BF16, 1, tile, row + r, block, of_four, p_of_four);
    }
  }
  size_t d = 0;
  for (; d + 64 <= dim; d += 64) amx_weigh(1, tile, row, p, block, d);
  for (; d < dim; d += 32) amx_weigh(0, tile, row, p, block, d);
}
#endif

#endif
