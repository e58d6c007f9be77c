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
//   sinks f32[Hq] (has_sinks)
//   → parts f32[T, C, Hq, D + 2] (unscaled sums, maximum, sum of weights)  y f32[T, Hq, D]
// Workgroup id: (tile or token, chunk) and KV head, the head fastest.
// Owns: its rows of y, or its row of parts.
#include "attention_amx.h"

#define KV_CHUNK 256
#define MAX_TILE_TOKENS 16
#define MAX_SPLIT_TOKENS 16
#define MAX_SPLIT_PARTS 512

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

// Whether AMX's tiles attend to a block.
INLINE int uses_tiles(int dtype, const Tile *tile) {
#if defined(__AMX_BF16__)
  return dtype == KV_BF16 && tile->dim % 32 == 0;
#else
  (void)dtype;
  (void)tile;
  return 0;
#endif
}

// The block of the context that starts there.  `next` is fetched meanwhile: a few rows are done
// with a block so soon that asking for all of the next one at once would take as long.
INLINE void attend_block(int dtype, Tile *tile, const Context *context, size_t start,
                         const KvBlock *next) {
  const KvBlock block = kv_block(dtype, context, start);
  const size_t page_size = context->shape.page_size;
#if defined(__AMX_BF16__)
  if (uses_tiles(dtype, tile)) {
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
  return !uses_tiles(dtype, tile) && tile->rows <= 4;
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
      if (dtype == KV_BF16 && !WITH_PAIRS) scaled = from_bf16(to_bf16(scaled));
      if (dtype == KV_BF16 && WITH_PAIRS)
        *(u16x16_any *)((uint16_t *)tile->q + row * tile->dim + d) = to_bf16(scaled);
      else
        store(tile->q + row * tile->dim + d, scaled);
    }
  }
  if (dtype == KV_BF16 && WITH_PAIRS)
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
