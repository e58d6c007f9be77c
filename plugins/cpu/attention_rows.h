// Attention of a few rows to one block of 64 positions: scores, softmax so far, weighted sums.
//
//   s[r, j]     = q[r, :] · K[j, :]                     then the soft cap; -inf where hidden
//   maximum'[r] = max(maximum[r], max_j s[r, j])        factor[r] = e^(maximum[r] - maximum'[r])
//   p[r, j]     = e^(s[r, j] - maximum'[r])
//   weight'[r]  = factor[r] weight[r] + Σ_j p[r, j]
//   sums'[r, :] = factor[r] sums[r, :] + Σ_j p[r, j] V[j, :]
//
// q, K, V are as wide as the pages' elements say; all sums are float32.  Rows do not meet: a
// row's bits do not depend on the rows beside it.
#ifndef LLMIR_ATTENTION_ROWS_H
#define LLMIR_ATTENTION_ROWS_H

#include "amx.h"
#include "pages.h"

#define KV_BLOCK 64
#define MAX_ROW_FLOATS 4096  // rows of a tile times D
#define MAX_DIM 256
#define MAX_TILE_ROWS 64
// Vectors of sums for each of four rows that the registers hold: without AVX-512's, one.
#if defined(__AVX512F__)
#define VECTORS_AT_ONCE 4
#else
#define VECTORS_AT_ONCE 1
#endif
// Of bfloat16: whether one instruction multiplies pairs of them.  Without it queries and weights are
// widened once, and not where they are multiplied.
#if defined(__AVX512BF16__)
#define WITH_PAIRS 1
#else
#define WITH_PAIRS 0
#endif
#define MINUS_INFINITY (-__builtin_inff())

// Rows of a tile: token r / group, head r % group of those that share a KV head.
typedef struct {
  size_t rows, dim, group;
  const int32_t *positions;  // of the tile's tokens
  size_t window;
  float softcap;  // 0: none
  // [rows, dim], scaled; bf16: rounded to it, with pairs [rows, dim] as bfloat16, and rows of zeros
  // up to sixteen.
  float q[MAX_ROW_FLOATS];
  float sums[MAX_ROW_FLOATS + AMX_ROWS * MAX_DIM];  // [rows, dim] Σ e^(s - maximum) V
  float maximum[MAX_TILE_ROWS], weight[MAX_TILE_ROWS];
  float weights[MAX_TILE_ROWS * LANES];  // [rows, 16]: weight, before its lanes are added up
} Tile;

typedef struct {
  uint8_t *kv;
  KvShape shape;
  const int32_t *pages;  // of the sequence
  size_t head;
  size_t first, end;     // positions that the tile reads
} Context;

INLINE size_t first_position(size_t position, size_t window) {
  return window && position + 1 > window ? position + 1 - window : 0;
}

INLINE f32x16 k_column(int dtype, const uint8_t *page, size_t at) {
  if (dtype == KV_INT8) return load_int8(page + at);
  if (dtype == KV_FP8) return load_fp8(page + at);
  return dtype == KV_F32 ? load((const float *)page + at) : load_f16((const _Float16 *)page + at);
}

// One block of positions as a tile sees it: `from` … `to` - 1 of `start` … start + 63.
typedef struct {
  size_t start, from, to;
  const uint8_t *k[KV_BLOCK / LANES];  // sixteen positions each, from dim 0 on; any of those
  const uint8_t *v[KV_BLOCK / LANES];  // that are there for those that are not
  const float *k_scale[KV_BLOCK / LANES], *v_scale[KV_BLOCK / LANES];  // int8: of them
} KvBlock;

INLINE int is_there(const KvBlock *block, size_t i) {
  const size_t at = block->start + i * LANES;
  return at + LANES > block->from && at < block->to;
}

// Ask for the K and V of a block that is wanted soon: pages lie anywhere, and what the hardware
// fetches ahead ends with each.
INLINE void prefetch_block(int dtype, const Context *context, size_t start) {
  const size_t ps = context->shape.page_size;
  const size_t bytes = kv_page_bytes(dtype, &context->shape);
  for (size_t at = start; at < start + KV_BLOCK && at < context->end; at += ps)
    for (int is_v = 0; is_v < 2; is_v++) {
      const uint8_t *page = kv_page(context->kv, dtype, &context->shape,
                                    (size_t)context->pages[at / ps], is_v, context->head);
      for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(page + i, 0, 2);
    }
}

// Where the first block starts that a tile reads.
INLINE size_t first_block(const Context *context) { return context->first / KV_BLOCK * KV_BLOCK; }

INLINE KvBlock kv_block(int dtype, const Context *context, size_t start) {
  const size_t ps = context->shape.page_size;
  KvBlock block = {.start = start};
  block.from = context->first > start ? context->first : start;
  block.to = context->end < start + KV_BLOCK ? context->end : start + KV_BLOCK;
  for (size_t i = 0; i < KV_BLOCK / LANES; i++) {
    const size_t at = is_there(&block, i) ? start + i * LANES : block.from / LANES * LANES;
    const size_t page = (size_t)context->pages[at / ps], o = at % ps;
    const size_t of_o = dtype == KV_BF16 ? 4 : kv_bytes(dtype);
    const uint8_t *k = kv_page(context->kv, dtype, &context->shape, page, 0, context->head);
    const uint8_t *v = kv_page(context->kv, dtype, &context->shape, page, 1, context->head);
    block.k[i] = k + o * of_o;
    block.v[i] = v + o * context->shape.dim * kv_bytes(dtype);
    if (dtype == KV_INT8) {
      block.k_scale[i] = (const float *)(k + ps * context->shape.dim) + o;
      block.v_scale[i] = (const float *)(v + ps * context->shape.dim) + o;
    }
  }
  return block;
}

// acc[i] + w[2i] * a[0] + w[2i + 1] * a[1]: dot2_bf16 with `a` widened.
INLINE f32x16 add_pair(f32x16 acc, u32x16 w, const float *a) {
  acc = fma16((f32x16)(w & 0xFFFF0000), splat(a[1]), acc);
  return fma16((f32x16)(w << 16), splat(a[0]), acc);
}

// Scores of `rows` (at most 4) rows from `row` on at 16 `vectors` of the block's 64 positions, from
// the sixteen `from` on.  next: NULL, or a block whose K is fetched meanwhile.
INLINE void score_some(int dtype, int rows, int vectors, const Tile *tile, size_t row,
                       const KvBlock *block, const KvBlock *next, size_t page_size, int from,
                       f32x16 scores[4][KV_BLOCK / LANES]) {
  const size_t dim = tile->dim;
  f32x16 out[4][VECTORS_AT_ONCE];
  for (int r = 0; r < rows; r++)
    for (int i = 0; i < vectors; i++) out[r][i] = splat(0);
  if (dtype == KV_BF16 && !WITH_PAIRS) {
    const float *q = tile->q + row * dim;
    for (size_t d = 0; d < dim; d += 2)
      for (int i = 0; i < vectors; i++) {
        const u32x16 k = *(const u32x16_any *)(block->k[from + i] + d * page_size * 2);
        if (next) prefetch(next->k[from + i] + d * page_size * 2);
        for (int r = 0; r < rows; r++)
          out[r][i] = add_pair(out[r][i], k, q + (size_t)r * dim + d);
      }
  } else if (dtype == KV_BF16) {
    const uint32_t *q = (const uint32_t *)tile->q + row * (dim / 2);
    for (size_t d = 0; d < dim / 2; d++)
      for (int i = 0; i < vectors; i++) {
        u32x16 k = *(const u32x16_any *)(block->k[from + i] + d * page_size * 4);
        if (next) prefetch(next->k[from + i] + d * page_size * 4);
        for (int r = 0; r < rows; r++)
          out[r][i] = dot2_bf16(out[r][i], k, q[(size_t)r * (dim / 2) + d]);
      }
  } else {
    const float *q = tile->q + row * dim;
    for (size_t d = 0; d < dim; d++) {
      f32x16 q_d[4];
      for (int r = 0; r < rows; r++) q_d[r] = splat(q[(size_t)r * dim + d]);
      for (int i = 0; i < vectors; i++) {
        f32x16 k = k_column(dtype, block->k[from + i], d * page_size);
        if (next) prefetch(next->k[from + i] + d * page_size * kv_bytes(dtype));
        for (int r = 0; r < rows; r++) out[r][i] = fma16(k, q_d[r], out[r][i]);
      }
    }
    if (dtype == KV_INT8 || dtype == KV_FP8)
      for (int i = 0; i < vectors; i++) {
        const f32x16 unit = dtype == KV_FP8 ? splat(FP8_UNIT) : load(block->k_scale[from + i]);
        for (int r = 0; r < rows; r++) out[r][i] *= unit;
      }
  }
  for (int r = 0; r < rows; r++)
    for (int i = 0; i < vectors; i++) scores[r][from + i] = out[r][i];
}

INLINE void score(int dtype, int rows, const Tile *tile, size_t row, const KvBlock *block,
                  const KvBlock *next, size_t page_size, f32x16 out[4][KV_BLOCK / LANES]) {
#pragma clang loop unroll(disable)
  for (int from = 0; from < KV_BLOCK / LANES; from += VECTORS_AT_ONCE)
    score_some(dtype, rows, VECTORS_AT_ONCE, tile, row, block, next, page_size, from, out);
}

// sums[row + r, 16 `vectors` dims from d on] += Σ p[r, position] V[position, :] over the block.
// next: NULL, or a block whose V is fetched meanwhile.
INLINE void weigh(int dtype, int rows, int vectors, Tile *tile, size_t row, const float *p,
                  const KvBlock *block, const KvBlock *next, size_t d) {
  const size_t dim = tile->dim;
  f32x16 acc[4][VECTORS_AT_ONCE];
  float *sums = tile->sums + row * dim + d;
  for (int r = 0; r < rows; r++)
    for (int i = 0; i < vectors; i++) acc[r][i] = load(sums + (size_t)r * dim + 16 * i);
  for (size_t sixteen = 0; sixteen < KV_BLOCK / LANES; sixteen++) {
    if (!is_there(block, sixteen)) continue;
    const size_t at = block->start + sixteen * LANES;
    const size_t o = block->from > at ? block->from - at : 0;
    const size_t end = block->to < at + LANES ? block->to - at : LANES;
    const uint8_t *v_16 = block->v[sixteen];
    const uint8_t *next_16 = next ? next->v[sixteen] : NULL;
    if (dtype == KV_BF16 && !WITH_PAIRS && o == 0 && end == LANES) {
      for (size_t pair = 0; pair < LANES / 2; pair++)
        for (int i = 0; i < vectors; i++) {
          const u32x16 v = *(const u32x16_any *)(v_16 + (pair * dim + d + 16 * i) * 4);
          if (next) prefetch(next_16 + (pair * dim + d + 16 * i) * 4);
          for (int r = 0; r < rows; r++)
            acc[r][i] = add_pair(acc[r][i], v, p + r * KV_BLOCK + sixteen * LANES + 2 * pair);
        }
    } else if (dtype == KV_BF16) {
      const uint32_t *pairs = (const uint32_t *)p + sixteen * (LANES / 2);
      for (size_t pair = o / 2; pair < (end + 1) / 2; pair++) {
        // Of a pair that is half outside, the outer V may be anything: its weight is 0.
        const uint32_t keep =
            (2 * pair >= o ? 0xFFFFu : 0) | (2 * pair + 1 < end ? 0xFFFF0000u : 0);
        for (int i = 0; i < vectors; i++) {
          u32x16 v = *(const u32x16_any *)(v_16 + (pair * dim + d + 16 * i) * 4) & keep;
          if (next) prefetch(next_16 + (pair * dim + d + 16 * i) * 4);
          for (int r = 0; r < rows; r++)
            acc[r][i] = WITH_PAIRS
                            ? dot2_bf16(acc[r][i], v, pairs[r * KV_BLOCK + pair])
                            : add_pair(acc[r][i], v, p + r * KV_BLOCK + sixteen * LANES + 2 * pair);
        }
      }
    } else {
      for (size_t at_o = o; at_o < end; at_o++) {
        f32x16 p_o[4];
        for (int r = 0; r < rows; r++) p_o[r] = splat(p[r * KV_BLOCK + sixteen * LANES + at_o]);
        for (int i = 0; i < vectors; i++) {
          f32x16 v = k_column(dtype, v_16, at_o * dim + d + 16 * i);
          if (next) prefetch(next_16 + (at_o * dim + d + 16 * i) * kv_bytes(dtype));
          for (int r = 0; r < rows; r++) acc[r][i] = fma16(v, p_o[r], acc[r][i]);
        }
      }
    }
  }
  for (int r = 0; r < rows; r++)
    for (int i = 0; i < vectors; i++) store(sums + (size_t)r * dim + 16 * i, acc[r][i]);
}

INLINE i32x16 iota(void) {
  return (i32x16){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
}

// s[count] → cap tanh(s / cap).  Out of line and rare: `soften` is there many times.
static __attribute__((noinline, cold)) void cap_scores(float *s, size_t count, float cap) {
  for (size_t i = 0; i < count; i += LANES)
    store(s + i, splat(cap) * tanh16(load(s + i) * splat(1 / cap)));
}

// From the scores s of `rows` rows to their weights p in the block, [rows, 64] rounded as q is; the
// rows' maximum, weight and sums are brought up to date, all but this block's part of the sums.
// int8, fp8: p times what V is to be multiplied by, anything where the block has no position.
INLINE void soften(int dtype, int rows, Tile *tile, size_t row, const KvBlock *block,
                   f32x16 s[4][KV_BLOCK / LANES], float *p) {
  const size_t dim = tile->dim;
  f32x16 before = splat(0), now = splat(0);  // a lane per row
  if (tile->softcap > 0) {
    for (int r = 0; r < rows; r++)
      for (int i = 0; i < 4; i++) store(p + r * KV_BLOCK + i * LANES, s[r][i]);
    cap_scores(p, (size_t)rows * KV_BLOCK, tile->softcap);
    for (int r = 0; r < rows; r++)
      for (int i = 0; i < 4; i++) s[r][i] = load(p + r * KV_BLOCK + i * LANES);
  }
  for (int r = 0; r < rows; r++) {
    const size_t last = (size_t)tile->positions[(row + (size_t)r) / tile->group];
    const int32_t first = (int32_t)first_position(last, tile->window);
    for (size_t i = 0; i < KV_BLOCK / LANES; i++) {
      const i32x16 position = iota() + (int32_t)(block->start + i * LANES);
      const i32x16 hidden = (position > (int32_t)last) | (position < first);
      s[r][i] = hidden ? splat(MINUS_INFINITY) : s[r][i];
    }
    const float largest = largest16(max16(max16(s[r][0], s[r][1]), max16(s[r][2], s[r][3])));
    before[r] = tile->maximum[row + (size_t)r];
    const float maximum = largest > before[r] ? largest : before[r];
    tile->maximum[row + (size_t)r] = maximum;
    now[r] = maximum == MINUS_INFINITY ? 0 : maximum;
  }
  const f32x16 factor = exp16(before - now);
  for (int r = 0; r < rows; r++) {
    f32x16 sum = splat(0);
    for (int i = 0; i < KV_BLOCK / LANES; i++) {
      f32x16 e = exp16(s[r][i] - splat(now[r]));
      sum += e;
      if (dtype == KV_BF16 && WITH_PAIRS)
        *(u16x16_any *)((uint16_t *)(p + r * KV_BLOCK) + i * LANES) = to_bf16(e);
      else if (dtype == KV_BF16)
        store(p + r * KV_BLOCK + i * LANES, from_bf16(to_bf16(e)));
      else if (dtype == KV_INT8)
        store(p + r * KV_BLOCK + i * LANES, e * load(block->v_scale[i]));
      else if (dtype == KV_FP8)
        store(p + r * KV_BLOCK + i * LANES, e * splat(FP8_UNIT));
      else
        store(p + r * KV_BLOCK + i * LANES, e);
    }
    float *weight = tile->weights + (row + (size_t)r) * LANES;
    store(weight, fma16(load(weight), splat(factor[r]), sum));
    float *sums = tile->sums + (row + (size_t)r) * dim;
    for (size_t d = 0; d < dim; d += LANES) store(sums + d, load(sums + d) * splat(factor[r]));
  }
}

INLINE void attend_rows(int dtype, int rows, Tile *tile, size_t row, const KvBlock *block,
                        const KvBlock *next, size_t page_size) {
  f32x16 s[4][KV_BLOCK / LANES];
  float p[4 * KV_BLOCK] __attribute__((aligned(64)));
  score(dtype, rows, tile, row, block, next, page_size, s);
  soften(dtype, rows, tile, row, block, s, p);
  size_t d = 0;
  for (; d + VECTORS_AT_ONCE * LANES <= tile->dim; d += VECTORS_AT_ONCE * LANES)
    weigh(dtype, rows, VECTORS_AT_ONCE, tile, row, p, block, next, d);
#if VECTORS_AT_ONCE > 1
  for (; d < tile->dim; d += LANES) weigh(dtype, rows, 1, tile, row, p, block, next, d);
#endif
}

#endif
