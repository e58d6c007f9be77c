// llmir_attend_<kv>, llmir_combine, llmir_append_kv_<kv>: attention over the paged KV cache.
//
//   s[t, h, j] = scale * q[t, h, :] · K[j, h / G, :]        first(t) <= j <= positions[t]
//   y[t, h, :] = Σ_j softmax_j(s[t, h, :]) V[j, h / G, :]
//
// With a soft cap, s is cap tanh(s / cap); with sinks, the sum in softmax has e^sinks[h] as well.
//
// The online softmax (Milakov and Gimelshein, 2018; FlashAttention) over blocks of 64
// positions, inside chunks of 256, both at fixed absolute positions; the chunks' results are
// combined in order.  What is done for a row depends on its own positions alone, so its bits
// do not depend on how the work is split:
//   few tokens   a workgroup per token, KV head and chunk, into `parts`; then combine
//   many         a workgroup per tile of tokens and KV head, all chunks in turn, into y
// `is_split` decides, by T and the chunks of the longest context.
//
// Nothing outside [first of the tile, last of the tile] is read into any arithmetic: freed
// pages and unwritten slots may hold NaN.
//
// ABI: pointers with an offset in elements, then sizes.
//   q f32[T, Hq, D]  kv (pages.h)  page_table i32[S, P]  token_seq i32[T]  positions i32[T]
//   sinks f32[Hq] (has_sinks)  → parts f32[T, C, Hq, D + 2] (unscaled sums, maximum, sum of weights)  y f32[T, Hq, D]
// Workgroup id: (tile or token, chunk) and KV head, the head fastest.
// Owns: its rows of y, or its row of parts.
#include "amx.h"
#include "pages.h"

#define KV_BLOCK 64
#define KV_CHUNK 256
#define MAX_ROW_FLOATS 4096  // rows of a tile times D
#define MAX_TILE_TOKENS 16
#define MAX_SPLIT_TOKENS 16
#define MAX_SPLIT_PARTS 512
#define MAX_DIM 256
#define MAX_TILE_ROWS 64
// Vectors of sums for each of four rows that the registers hold: without AVX-512's, one.
#if defined(__AVX512F__)
#define VECTORS_AT_ONCE 4
#else
#define VECTORS_AT_ONCE 1
#endif
#define MINUS_INFINITY (-__builtin_inff())

INLINE size_t num_chunks(size_t columns, size_t page_size) {
  return (columns * page_size + KV_CHUNK - 1) / KV_CHUNK;
}
INLINE int is_split(size_t tokens, size_t chunks) {
  return tokens <= MAX_SPLIT_TOKENS && tokens * chunks <= MAX_SPLIT_PARTS && chunks > 1;
}
INLINE size_t tile_tokens(size_t group, size_t dim) {
  const size_t by_rows = MAX_TILE_ROWS / group, by_floats = MAX_ROW_FLOATS / (group * dim);
  const size_t most = by_rows < by_floats ? by_rows : by_floats;
  return most < MAX_TILE_TOKENS ? (most ? most : 1) : MAX_TILE_TOKENS;
}

// Rows of a tile: token r / group, head r % group of those that share a KV head.
typedef struct {
  size_t rows, dim, group;
  const int32_t *positions;  // of the tile's tokens
  size_t window;
  float softcap;  // 0: none
  // [rows, dim], scaled; bf16: [rows, dim] as bfloat16, and rows of zeros up to sixteen.
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

// Scores of `rows` (at most 4) rows from `row` on at 16 `vectors` of the block's 64 positions, from
// the sixteen `from` on.  next: NULL, or a block whose K is fetched meanwhile.
INLINE void score_some(int dtype, int rows, int vectors, const Tile *tile, size_t row,
                       const KvBlock *block, const KvBlock *next, size_t page_size, int from,
                       f32x16 scores[4][KV_BLOCK / LANES]) {
  const size_t dim = tile->dim;
  f32x16 out[4][VECTORS_AT_ONCE];
  for (int r = 0; r < rows; r++)
    for (int i = 0; i < vectors; i++) out[r][i] = splat(0);
  if (dtype == KV_BF16) {
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
    if (dtype == KV_BF16) {
      const uint32_t *pairs = (const uint32_t *)p + sixteen * (LANES / 2);
      for (size_t pair = o / 2; pair < (end + 1) / 2; pair++) {
        // Of a pair that is half outside, the outer V may be anything: its weight is 0.
        const uint32_t keep =
            (2 * pair >= o ? 0xFFFFu : 0) | (2 * pair + 1 < end ? 0xFFFF0000u : 0);
        for (int i = 0; i < vectors; i++) {
          u32x16 v = *(const u32x16_any *)(v_16 + (pair * dim + d + 16 * i) * 4) & keep;
          if (next) prefetch(next_16 + (pair * dim + d + 16 * i) * 4);
          for (int r = 0; r < rows; r++)
            acc[r][i] = dot2_bf16(acc[r][i], v, pairs[r * KV_BLOCK + pair]);
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

// From the scores s of `rows` rows to their weights p in the block, f32 or bf16 [rows, 64]; the
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
      if (dtype == KV_BF16)
        *(u16x16_any *)((uint16_t *)(p + r * KV_BLOCK) + i * LANES) = to_bf16(e);
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

// The block of the context that starts there.  `next` is fetched meanwhile: a few rows are done
// with a block so soon that asking for all of the next one at once would take as long.
INLINE void attend_block(int dtype, Tile *tile, const Context *context, size_t start,
                         const KvBlock *next) {
  const KvBlock block = kv_block(dtype, context, start);
  const size_t page_size = context->shape.page_size;
#if defined(__AMX_BF16__)
  if (dtype == KV_BF16 && tile->dim % 32 == 0) {
    for (size_t row = 0; row < tile->rows; row += AMX_ROWS)
      amx_attend_rows(tile, row, &block, page_size);
    return;
  }
#endif
  size_t row = 0;
  if (tile->rows > 4) {
    for (; row + 4 <= tile->rows; row += 4)
      attend_rows(dtype, 4, tile, row, &block, NULL, page_size);
    next = &block;
  }
  switch (tile->rows - row) {
    case 4: attend_rows(dtype, 4, tile, row, &block, next, page_size); break;
    case 3: attend_rows(dtype, 3, tile, row, &block, next, page_size); break;
    case 2: attend_rows(dtype, 2, tile, row, &block, next, page_size); break;
    case 1: attend_rows(dtype, 1, tile, row, &block, next, page_size); break;
    default: break;
  }
}

// Whether a tile's blocks are fetched while the ones before are attended to, line by line.
INLINE int fetches_by_line(int dtype, const Tile *tile) {
#if defined(__AMX_BF16__)
  if (dtype == KV_BF16 && tile->dim % 32 == 0) return 0;
#endif
  (void)dtype;
  return tile->rows <= 4;
}

// maximum, weight and sums of the tile over one chunk.  A block is read once for all rows.
// following: the context that is wanted after this one, or this one.
INLINE void attend_chunk(int dtype, Tile *tile, const Context *context, const Context *following,
                         size_t start) {
  for (size_t i = 0; i < tile->rows * tile->dim; i += LANES) store(tile->sums + i, splat(0));
  for (size_t row = 0; row < tile->rows; row++) {
    tile->maximum[row] = MINUS_INFINITY;
    store(tile->weights + row * LANES, splat(0));
  }
  for (size_t at = start; at < start + KV_CHUNK && at < context->end; at += KV_BLOCK) {
    if (at + KV_BLOCK <= context->first) continue;
    const int is_last = at + KV_BLOCK >= context->end;
    const Context *of_next = is_last ? following : context;
    const size_t next_at = is_last ? first_block(following) : at + KV_BLOCK;
    if (fetches_by_line(dtype, tile)) {
      const KvBlock next = kv_block(dtype, of_next, next_at);
      attend_block(dtype, tile, context, at, &next);
    } else {
      prefetch_block(dtype, of_next, next_at);
      attend_block(dtype, tile, context, at, NULL);
    }
  }
  for (size_t row = 0; row < tile->rows; row++)
    tile->weight[row] = sum16(load(tile->weights + row * LANES));
}

// The result so far of one row, and how a chunk's is added to it.
typedef struct {
  float maximum, weight;
} Total;

INLINE void add_chunk(Total *total, float *sums, size_t dim, float maximum, float weight,
                      const float *part) {
  const float both = maximum > total->maximum ? maximum : total->maximum;
  if (both == MINUS_INFINITY) return;
  f32x16 below = splat(0);
  below[0] = total->maximum - both;
  below[1] = maximum - both;
  const f32x16 factor = exp16(below);
  for (size_t d = 0; d < dim; d += LANES)
    store(sums + d, fma16(load(part + d), splat(factor[1]), load(sums + d) * splat(factor[0])));
  total->weight = total->weight * factor[0] + weight * factor[1];
  total->maximum = both;
}

// A logit more in the sum, that of no position (Xiao et al., 2023).
INLINE void add_sink(Total *total, float *sums, size_t dim, float sink) {
  const float both = sink > total->maximum ? sink : total->maximum;
  f32x16 below = splat(0);
  below[0] = total->maximum - both;
  below[1] = sink - both;
  const f32x16 factor = exp16(below);
  for (size_t d = 0; d < dim; d += LANES) store(sums + d, load(sums + d) * splat(factor[0]));
  total->weight = total->weight * factor[0] + factor[1];
}

INLINE void write_row(float *y, const float *sums, float weight, size_t dim) {
  for (size_t d = 0; d < dim; d += LANES) store(y + d, load(sums + d) / splat(weight));
}

INLINE void load_queries(int dtype, Tile *tile, const float *q, size_t q_heads, size_t head,
                         size_t token, float scale) {
  for (size_t row = 0; row < tile->rows; row++) {
    const float *from =
        q + ((token + row / tile->group) * q_heads + head * tile->group + row % tile->group) *
                tile->dim;
    for (size_t d = 0; d < tile->dim; d += LANES) {
      f32x16 scaled = load(from + d) * splat(scale);
      if (dtype == KV_BF16)
        *(u16x16_any *)((uint16_t *)tile->q + row * tile->dim + d) = to_bf16(scaled);
      else
        store(tile->q + row * tile->dim + d, scaled);
    }
  }
  if (dtype == KV_BF16)
    for (size_t row = tile->rows; row % AMX_ROWS; row++)
      for (size_t d = 0; d < tile->dim; d += LANES)
        *(u16x16_any *)((uint16_t *)tile->q + row * tile->dim + d) = (u16x16)(0);
}

// Tokens token … end - 1 of one sequence, beside each other in it, and what they read.
typedef struct {
  size_t token, end;
  Context context;
} Run;

INLINE Run run_at(size_t token, size_t tile_end, const int32_t *token_seq,
                  const int32_t *positions, const int32_t *page_table, size_t columns,
                  size_t window, const Context *of_head) {
  Run run = {.token = token, .end = token + 1, .context = *of_head};
  while (run.end < tile_end && token_seq[run.end] == token_seq[token] &&
         positions[run.end] == positions[run.end - 1] + 1)
    run.end++;
  run.context.pages = page_table + (size_t)token_seq[token] * columns;
  run.context.first = first_position((size_t)positions[token], window);
  run.context.end = (size_t)positions[run.end - 1] + 1;
  return run;
}

INLINE void attend(int dtype, const float *q, uint8_t *kv, const int32_t *page_table,
                   const int32_t *token_seq, const int32_t *positions, const float *sinks,
                   float *parts, float *y, size_t tokens, size_t q_heads, KvShape shape,
                   size_t columns, float scale, float softcap, size_t window, size_t id) {
  const size_t dim = shape.dim, group = q_heads / shape.heads, head = id % shape.heads;
  const size_t chunks = num_chunks(columns, shape.page_size);
  Tile tile;  // not initialised: that would be a memset
  tile.dim = dim;
  tile.group = group;
  tile.window = window;
  tile.softcap = softcap;
  Context context = {.kv = kv, .shape = shape, .head = head};
  id /= shape.heads;
#if defined(__AMX_BF16__)
  if (dtype == KV_BF16) amx_configure_attention();
#endif
  if (is_split(tokens, chunks)) {
    const size_t token = id / chunks, chunk = id % chunks;
    const size_t last = (size_t)positions[token];
    context.pages = page_table + (size_t)token_seq[token] * columns;
    context.first = first_position(last, window);
    context.end = last + 1;
    if (chunk * KV_CHUNK >= context.end || (chunk + 1) * KV_CHUNK <= context.first) return;
    tile.rows = group;
    tile.positions = positions + token;
    const size_t first = first_block(&context), start = chunk * KV_CHUNK;
    prefetch_block(dtype, &context, first > start ? first : start);
    load_queries(dtype, &tile, q, q_heads, head, token, scale);
    attend_chunk(dtype, &tile, &context, &context, start);
    for (size_t row = 0; row < group; row++) {
      float *part = parts + ((token * chunks + chunk) * q_heads + head * group + row) * (dim + 2);
      for (size_t d = 0; d < dim; d += LANES) store(part + d, load(tile.sums + row * dim + d));
      part[dim] = tile.maximum[row];
      part[dim + 1] = tile.weight[row];
    }
    return;
  }
  float totals[MAX_ROW_FLOATS] __attribute__((aligned(64)));
  Total total[MAX_TILE_ROWS];
  const size_t most = tile_tokens(group, dim);
  const size_t tile_end = (id + 1) * most < tokens ? (id + 1) * most : tokens;
  Run run = run_at(id * most, tile_end, token_seq, positions, page_table, columns, window, &context);
  prefetch_block(dtype, &run.context, first_block(&run.context));
  for (;;) {
    Run next = run;
    if (run.end < tile_end)
      next = run_at(run.end, tile_end, token_seq, positions, page_table, columns, window, &context);
    const size_t token = run.token;
    tile.rows = (run.end - token) * group;
    tile.positions = positions + token;
    load_queries(dtype, &tile, q, q_heads, head, token, scale);
    for (size_t row = 0; row < tile.rows; row++) {
      total[row] = (Total){.maximum = MINUS_INFINITY, .weight = 0};
      for (size_t d = 0; d < dim; d += LANES) store(totals + row * dim + d, splat(0));
    }
    for (size_t at = run.context.first / KV_CHUNK * KV_CHUNK; at < run.context.end;
         at += KV_CHUNK) {
      attend_chunk(dtype, &tile, &run.context, &next.context, at);
      for (size_t row = 0; row < tile.rows; row++)
        add_chunk(&total[row], totals + row * dim, dim, tile.maximum[row], tile.weight[row],
                  tile.sums + row * dim);
    }
    if (sinks)
      for (size_t row = 0; row < tile.rows; row++)
        add_sink(&total[row], totals + row * dim, dim, sinks[head * group + row % group]);
    for (size_t row = 0; row < tile.rows; row++)
      write_row(y + ((token + row / group) * q_heads + head * group + row % group) * dim,
                totals + row * dim, total[row].weight, dim);
    if (run.end >= tile_end) return;
    run = next;
  }
}

// y of one token and head from the parts; called only where the work was split.
void llmir_combine(const float *parts, size_t parts_at, const int32_t *positions,
                          size_t positions_at, const float *sinks, size_t sinks_at, float *y,
                          size_t y_at, size_t tokens, size_t columns, size_t q_heads,
                          size_t page_size, size_t dim, size_t window, size_t has_sinks,
                          size_t id) {
  const size_t chunks = num_chunks(columns, page_size);
  if (!is_split(tokens, chunks)) return;
  const size_t token = id / q_heads, head = id % q_heads;
  const size_t last = (size_t)(positions + positions_at)[token];
  const size_t first = first_position(last, window);
  float sums[MAX_ROW_FLOATS] __attribute__((aligned(64)));
  Total total = {.maximum = MINUS_INFINITY, .weight = 0};
  for (size_t d = 0; d < dim; d += LANES) store(sums + d, splat(0));
  for (size_t chunk = first / KV_CHUNK; chunk * KV_CHUNK <= last; chunk++) {
    const float *part =
        parts + parts_at + ((token * chunks + chunk) * q_heads + head) * (dim + 2);
    add_chunk(&total, sums, dim, part[dim], part[dim + 1], part);
  }
  if (has_sinks) add_sink(&total, sums, dim, (sinks + sinks_at)[head]);
  write_row(y + y_at + (token * q_heads + head) * dim, sums, total.weight, dim);
}

#define ATTEND(name, element, dtype)                                                            \
  void llmir_attend_##name(                                                              \
      const float *q, size_t q_at, element *kv, size_t kv_at, const int32_t *page_table,        \
      size_t page_table_at, const int32_t *token_seq, size_t token_seq_at,                      \
      const int32_t *positions, size_t positions_at, const float *sinks, size_t sinks_at,       \
      float *parts, size_t parts_at, float *y, size_t y_at, size_t tokens, size_t q_heads,      \
      size_t heads, size_t page_size, size_t dim, size_t columns, float scale, float softcap,   \
      size_t window, size_t has_sinks, size_t id) {                                             \
    attend(dtype, q + q_at, (uint8_t *)(kv + kv_at), page_table + page_table_at,                \
           token_seq + token_seq_at, positions + positions_at,                                  \
           has_sinks ? sinks + sinks_at : NULL, parts + parts_at, y + y_at, tokens, q_heads,    \
           (KvShape){heads, page_size, dim}, columns, scale, softcap, window, id);              \
  }

ATTEND(f32, float, KV_F32)
ATTEND(f16, _Float16, KV_F16)
ATTEND(bf16, uint16_t, KV_BF16)
ATTEND(int8, uint8_t, KV_INT8)
ATTEND(fp8, uint8_t, KV_FP8)
