// llmir_round_<format>_<activations>, llmir_matmul_…: a product with a packed weight.
//
//   a[t, :]  = rounded x[t, :], after RMSNorm where there is one            (activations.h)
//   y[t, n]  = Σ_k a[t, k] w[n, k] + bias[n] + residual[t, n]     (multiply.h, multiply_float.h)
//   silu:      rows of the weight are tiles of gate and up in turn;
//              y[t, n] = gate / (1 + e^-gate) * up
//   gelu:      the same with e^-(gate (a + b gate²)), which is GELU by tanh
//   best:      y is f32[count_n, T, 2]: of each share of the rows, the largest y[t, n] and, as an
//              i32, the lowest n that has it; -1 where one is NaN or infinite.  llmir_best
//              makes i32[T] of it
//   k > 0:     y is f32[count_n, T, 2 k], of each share of the rows the k largest y[t, n] and
//              their n as i32, and after that f32[units, T, 2], weights (topk.h); llmir_top
//              makes f32[T, k], i32[T, k] and f32[T] of it
//
// Integer activations: Σ over a block of 32 columns is of integers, exact, and that over the
// blocks of float32, one fused multiply-add after the other in their order.  Float ones: float32
// sums, in one order.  Both are the same for every T, so that a row's result does not depend on
// the batch.
//
// Workgroups round their tokens' activations themselves, and have them in the nearest caches then;
// or, if prepared is 1, llmir_round has rounded each row once: where many share the same tokens.
//
// ABI: pointers with an offset in elements, then sizes.
//   x f32[T, K]  norm f32[K]  → acts u8[T + 16, row_bytes], the rows past T anything
//   x, norm, acts  w u8[…] (blocks.h)  bias f32[N]  residual f32[T, N]
//   → y f32[T, N]  scratch u8[workgroups, chunk_bytes]
//   flags: which of the optional ones are there, and k << 8; an absent pointer is any valid one
// Workgroup (id_n, id_m) of (count_n, count_m): an even share of the tiles, or pairs of tiles
// where there is a gate, and of the tokens, at most CHUNK of them.  Of llmir_round: of the tokens.
// Owns: its block of y, and its scratch.
#include "activations.h"
#include "blocks.h"
#include "matmul_amx.h"
#include "multiply.h"
#include "multiply_float.h"
#include "topk.h"

#define CHUNK 128
#define SCRATCH_ROWS 16  // a chunk's rows in scratch are a multiple of it

enum { HAS_NORM = 1, HAS_BIAS = 2, HAS_RESIDUAL = 4, SILU = 8, BEST = 16, GELU = 32 };
#define TOP_SHIFT 8

// The largest of each of sixteen columns, the column of lane 0 there, and what is not finite.
typedef struct {
  f32x16 most;
  i32x16 column, bad;
} Best;

typedef struct {
  const float *bias, *residual;  // of the whole matrix; NULL where absent
  float *y;
  size_t n;                      // columns of y
  size_t first_row;              // of the chunk
  Best *best;                    // of the rows of the chunk, instead of y; else NULL
  size_t k;                      // how many of the largest, instead of y; else 0
  float *top, *weights;          // of the rows of the chunk
  size_t weights_stride;         // from one tile's to the next
} Output;

// Sixteen columns with their bias; -inf beyond the last.
INLINE f32x16 whole_tile(const Output *out, size_t column, f32x16 value) {
  if (column + LANES <= out->n) return out->bias ? value + load(out->bias + column) : value;
  for (size_t i = 0; i < LANES; i++) {
    if (column + i >= out->n) value[i] = -__builtin_inff();
    else if (out->bias) value[i] += out->bias[column + i];
  }
  return value;
}

INLINE void take_top(const Output *out, size_t row, size_t column, f32x16 value) {
  float *values = out->top + row * 2 * out->k;
  const size_t lanes = column + LANES <= out->n ? LANES : out->n - column;
  value = whole_tile(out, column, value);
  insert_lanes(values, (int32_t *)(values + out->k), out->k, value, lanes, column);
  weigh_lanes(value, out->weights + column / LANES * out->weights_stride + row * 2);
}

INLINE void take_best(const Output *out, size_t row, size_t column, f32x16 value) {
  Best *best = out->best + row;
  value = whole_tile(out, column, value);
  const i32x16 more = value > best->most;
  best->most = more ? value : best->most;
  best->column = more ? splat_i32((int32_t)column) : best->column;
  best->bad |= (value != value) | (value == splat(__builtin_inff()));
}

INLINE void write_best(const Best *best, float *y) {
  float most = -__builtin_inff();
  int32_t at = -1, bad = 0;
  for (int i = 0; i < LANES; i++) {
    const int32_t column = best->column[i] + i;
    bad |= best->bad[i];
    if (best->most[i] > most || (best->most[i] == most && at >= 0 && column < at)) {
      most = best->most[i];
      at = column;
    }
  }
  y[0] = most;
  ((int32_t *)y)[1] = bad ? -1 : at;
}

INLINE void store_row(const Output *out, size_t row, size_t column, f32x16 value) {
  if (out->best) {
    take_best(out, row, column, value);
    return;
  }
  if (out->k) {
    take_top(out, row, column, value);
    return;
  }
  size_t at = (out->first_row + row) * out->n + column;
  if (column + LANES <= out->n) {
    if (out->bias) value += load(out->bias + column);
    if (out->residual) value += load(out->residual + at);
    store(out->y + at, value);
    return;
  }
  for (size_t i = 0; i < out->n - column; i++) {
    float v = value[i];
    if (out->bias) v += out->bias[column + i];
    if (out->residual) v += out->residual[at + i];
    out->y[at + i] = v;
  }
}

// What a workgroup computes with.
typedef struct {
  int format, precision;
  size_t rows, tile_rows;  // of activations; of those, how many go through AMX's integer tiles
  const uint8_t *acts;
  size_t stride, k;
  uint8_t *memory;         // panels, or a piece
  uint8_t *packed;         // amx_pack_rows' of tile_rows
} Chunk;

// out f32[parts, CHUNK, 16]: the chunk's rows times one tile, or two.
INLINE void multiply_unit(const Chunk *chunk, const uint8_t *unit, int parts, float *out) {
  const int format = chunk->format, precision = chunk->precision;
  const size_t k = chunk->k, stride = chunk->stride;
#if defined(__AMX_INT8__)
  if (chunk->tile_rows)
    amx_multiply_unit(format, precision, parts, chunk->tile_rows, chunk->packed, k, unit,
                      chunk->memory, CHUNK, out);
#endif
  const size_t rows = chunk->rows - chunk->tile_rows;
  const uint8_t *acts = chunk->acts + chunk->tile_rows * stride;
  if (!rows) return;
  for (int part = 0; part < parts; part++) {
    const uint8_t *tile = unit + (size_t)part * tile_bytes(format, k);
    float *to = out + ((size_t)part * CHUNK + chunk->tile_rows) * LANES;
#if WITH_BF16
    if (reads_pairs(format, precision)) {
      multiply_pairs(rows, acts, stride, k, tile, to);
      continue;
    }
#endif
    if (precision >= FLOAT32)
      multiply_float(format, rows, acts, stride, k, tile, (float *)chunk->memory, to);
    else
      multiply_by_vectors(format, precision, rows, acts, stride, k, tile, to);
  }
}

// The same of rows of int8_16: as int8, and then their low planes.
INLINE void multiply_both(const Chunk *chunk, const uint8_t *unit, int parts, float *out) {
  const size_t bytes = tile_bytes(chunk->format, chunk->k);
  multiply_unit(chunk, unit, parts, out);
  for (int part = 0; part < parts; part++)
    add_low_planes(chunk->format, chunk->rows, chunk->acts, chunk->stride, chunk->k,
                   unit + (size_t)part * bytes, out + (size_t)part * CHUNK * LANES);
}

// A workgroup's scratch: its rows of activations, if it rounds them; room for the panels of a
// unit, or for a piece; for tiles, the rows once more, block by block.
INLINE size_t chunk_bytes(size_t prepared, size_t rows, int precision, size_t k) {
  const size_t bytes = prepared ? 0 : rows * row_bytes(k, precision);
  if (precision >= FLOAT32) return bytes + FLOAT_PIECE_BYTES;
  return bytes + panels_bytes(k) + rows * (k / BLOCK) * ((size_t)num_planes(precision) * BLOCK + 8);
}

// What AMX needs before the first unit: the rows packed, the tiles configured.  Whether there is
// anything for it to do.  Rows that fill up a sixteen are other rows, or anything: nobody looks
// at what comes of them.
INLINE int begin_tiles(Chunk *chunk) {
  int used = 0;
#if defined(__AMX_INT8__)
  const size_t rows = chunk->rows, stride = chunk->stride, k = chunk->k;
  const int pairs = reads_pairs(chunk->format, chunk->precision);
  if (chunk->precision < FLOAT32) {
    chunk->tile_rows = rows / AMX_ROWS * AMX_ROWS;
    if (rows - chunk->tile_rows >= AMX_LEAST_ROWS) chunk->tile_rows = rows;
    chunk->packed = chunk->memory + panels_bytes(k);
  }
  used = rows && (chunk->tile_rows || pairs);
  if (!used) return 0;
  for (size_t row = 0; row < chunk->tile_rows; row += AMX_ROWS)
    amx_pack_rows(chunk->acts + row * stride, stride, k, chunk->precision,
                  chunk->packed + row / AMX_ROWS * (k / BLOCK) *
                                      amx_rows_block_bytes(chunk->precision));
  if (pairs) amx_configure_bf16();
  else amx_configure(amx_width(chunk->format, chunk->precision));
#else
  (void)chunk;
#endif
  return used;
}

INLINE void end_tiles(void) {
#if defined(__AMX_INT8__)
  _tile_release();
#endif
}

typedef struct {
  const float *x, *norm;
  const uint8_t *acts, *w;
  const float *bias, *residual;
  float *y;
  uint8_t *scratch;
  size_t tokens, k, n, flags, prepared;
  float eps;
  size_t id_n, count_n, id_m, count_m;
} Matmul;

// Rows first … first + rows - 1 of x, rounded.
NOINLINE void prepare_rows(const Matmul *call, int format, int precision, size_t first, size_t rows,
                           uint8_t *acts) {
  const size_t k = call->k, stride = row_bytes(k, precision);
  const float *norm = call->flags & HAS_NORM ? call->norm : NULL;
  const int narrow = reads_pairs(format, precision), round = precision == BFLOAT16;
  const int zero = zero_of_offsets(format), parts = is_halved(format) ? 2 : 1;
  const int wide = is_wide(format);
  for (size_t row = 0; row < rows; row++) {
    const float *x = call->x + (first + row) * k;
    uint8_t *to = acts + row * stride;
    if (precision >= FLOAT32) float_row(x, norm, call->eps, k, round, narrow, to);
    else if (precision == INT8 || precision == INT8_16)
      quantize_row(x, norm, call->eps, k, INT8, zero, parts, wide, to);
    else quantize_row(x, norm, call->eps, k, precision, zero, parts, wide, to);
    if (precision == INT8_16) round_low_plane(x, norm, call->eps, k, zero, to);
  }
}

// x * sigmoid(x), or by GELU x * sigmoid(a x + b x³): a = 2 √(2/π), b = 0.044715 a.
INLINE f32x16 through_gate(size_t flags, f32x16 x) {
  f32x16 of = x;
  if (flags & GELU) {
    x = x < splat(-16) ? splat(-16) : x;  // from there on 0; exp16 ends at e^88
    of = x * fma16(x * x, splat(0.0713548163f), splat(1.5957691216f));
  }
  return x / (splat(1) + exp16(-of));
}

NOINLINE void matmul(const Matmul *call, int format, int precision) {
  const size_t tokens = call->tokens, k = call->k, flags = call->flags;
  const int gated = (flags & (SILU | GELU)) != 0, parts = gated ? 2 : 1;
  const size_t first = tokens * call->id_m / call->count_m;
  const size_t rows = tokens * (call->id_m + 1) / call->count_m - first;
  const size_t stride = row_bytes(k, precision);
  const size_t most = (tokens < CHUNK ? tokens + SCRATCH_ROWS - 1 : CHUNK) / SCRATCH_ROWS *
                      SCRATCH_ROWS;
  uint8_t *scratch = call->scratch + (call->id_m * call->count_n + call->id_n) *
                                         chunk_bytes(call->prepared, most, precision, k);
  const uint8_t *acts = scratch;
  if (call->prepared) {
    acts = call->acts + first * stride;
  } else {
    prepare_rows(call, format, precision, first, rows, scratch);
    scratch += most * stride;
  }
  Best best[CHUNK];
  if (flags & BEST)
    for (size_t row = 0; row < rows; row++)
      best[row] = (Best){splat(-__builtin_inff()), splat_i32(0), splat_i32(0)};
  const size_t units = (call->n + LANES - 1) / LANES, top = flags >> TOP_SHIFT;
  float *lists = call->y + (call->id_n * tokens + first) * 2 * top;
  for (size_t row = 0; row < (top ? rows : 0); row++)
    begin_top(lists + row * 2 * top, (int32_t *)(lists + (row * 2 + 1) * top), top);
  const Output out = {
      .k = top,
      .top = lists,
      .weights = call->y + (call->count_n * tokens * top + first) * 2,
      .weights_stride = tokens * 2,
      .best = flags & BEST ? best : NULL,
      .bias = flags & HAS_BIAS ? call->bias : NULL,
      .residual = flags & HAS_RESIDUAL ? call->residual : NULL,
      .y = call->y,
      .n = call->n,
      .first_row = first,
  };
  Chunk chunk = {
      .format = format,
      .precision = precision == INT8_16 ? INT8 : precision,
      .rows = rows,
      .acts = acts,
      .stride = stride,
      .k = k,
      .memory = scratch,
  };
  const int with_tiles = begin_tiles(&chunk);
  const size_t unit_bytes = (size_t)parts * tile_bytes(format, k);
  const size_t end = units * (call->id_n + 1) / call->count_n;
  float sums[2 * CHUNK * LANES] __attribute__((aligned(64)));
  for (size_t unit = units * call->id_n / call->count_n; unit < end; unit++) {
    const uint8_t *w = call->w + unit * unit_bytes;
    if (precision == INT8_16) multiply_both(&chunk, w, parts, sums);
    else multiply_unit(&chunk, w, parts, sums);
    for (size_t row = 0; row < rows; row++) {
      f32x16 value = load(sums + row * LANES);
      if (gated) value = through_gate(flags, value) * load(sums + (CHUNK + row) * LANES);
      store_row(&out, row, unit * LANES, value);
    }
  }
  if (with_tiles) end_tiles();
  if (flags & BEST)
    for (size_t row = 0; row < rows; row++)
      write_best(best + row, call->y + (call->id_n * tokens + first + row) * 2);
}

// ids[t]: of the parts of all shares, the best one's column.  Workgroup id of count: of the tokens.
void llmir_best(const float *parts, size_t parts_at, int32_t *ids, size_t ids_at, size_t tokens,
                size_t shares, size_t id, size_t count) {
  for (size_t t = tokens * id / count; t < tokens * (id + 1) / count; t++) {
    float most = -__builtin_inff();
    int32_t best = -1, bad = 0;
    for (size_t share = 0; share < shares; share++) {
      const float *part = parts + parts_at + (share * tokens + t) * 2;
      const int32_t column = ((const int32_t *)part)[1];
      bad |= column < 0;
      if (part[0] > most) {
        most = part[0];
        best = column;
      }
    }
    ids[ids_at + t] = bad ? -1 : best;
  }
}

// Of all shares' lists, the k largest: values[t, :], falling, ids[t, :], and weights[t] =
// Σ_n e^(y[t, n] - values[t, 0]).  NaN, and -1, where the largest is NaN or infinite.
// Workgroup id of count: of the tokens.
void llmir_top(const float *parts, size_t parts_at, float *values, size_t values_at, int32_t *ids,
               size_t ids_at, float *weights, size_t weights_at, size_t tokens, size_t shares,
               size_t units, size_t k, size_t id, size_t count) {
  parts += parts_at;
  for (size_t t = tokens * id / count; t < tokens * (id + 1) / count; t++) {
    float *best = values + values_at + t * k;
    int32_t *columns = ids + ids_at + t * k;
    begin_top(best, columns, k);
    for (size_t share = 0; share < shares; share++) {
      const float *list = parts + (share * tokens + t) * 2 * k;
      const int32_t *list_columns = (const int32_t *)(list + k);
      for (size_t i = 0; i < k; i++)
        if (!insert_top(best, columns, k, list[i], list_columns[i])) break;
    }
    const float *of_row = parts + (shares * tokens * k + t) * 2;
    float weight = sum_weights(of_row, tokens * 2, units, best[0]);
    if (!(best[0] > LOWEST && best[0] < -LOWEST) || weight != weight) {
      weight = __builtin_nanf("");
      for (size_t i = 0; i < k; i++) {
        best[i] = weight;
        columns[i] = -1;
      }
    }
    weights[weights_at + t] = weight;
  }
}

#define MATMUL(name, format, precision)                                                          \
  void llmir_round_##name(const float *x, size_t x_at, const float *norm, size_t norm_at,        \
                          uint8_t *acts, size_t acts_at, size_t tokens, size_t k, size_t flags,  \
                          size_t prepared, float eps, size_t id, size_t count) {                 \
    const Matmul call = {.x = x + x_at, .norm = norm + norm_at, .k = k, .flags = flags,          \
                         .eps = eps};                                                            \
    const size_t first = tokens * id / count, end = tokens * (id + 1) / count;                   \
    if (!prepared) return;                                                                       \
    prepare_rows(&call, format, precision, first, end - first,                                   \
                 acts + acts_at + first * row_bytes(k, precision));                              \
  }                                                                                              \
  void llmir_matmul_##name(                                                                      \
      const float *x, size_t x_at, const float *norm, size_t norm_at, const uint8_t *acts,       \
      size_t acts_at, const uint8_t *w, size_t w_at, const float *bias, size_t bias_at,          \
      const float *residual, size_t residual_at, float *y, size_t y_at, uint8_t *scratch,        \
      size_t scratch_at, size_t tokens, size_t k, size_t n, size_t flags, size_t prepared,       \
      float eps, size_t id_n, size_t count_n, size_t id_m, size_t count_m) {                     \
    const Matmul call = {x + x_at, norm + norm_at, acts + acts_at, w + w_at, bias + bias_at,     \
                         residual + residual_at, y + y_at, scratch + scratch_at, tokens, k, n,   \
                         flags, prepared, eps, id_n, count_n, id_m, count_m};                    \
    matmul(&call, format, precision);                                                            \
  }

#define FLOAT_MATMULS(name, format) \
  MATMUL(name##_f32, format, FLOAT32) \
  MATMUL(name##_bf16, format, BFLOAT16)
#define MATMULS(name, format) \
  MATMUL(name##_int8, format, INT8) \
  MATMUL(name##_int16, format, INT16) \
  FLOAT_MATMULS(name, format)

// Four bits: none of those formats is halved, or wide.
#define FOUR_BIT_MATMULS(name, format) \
  MATMUL(name##_int12, format, INT12)  \
  MATMUL(name##_int8_16, format, INT8_16)

QUANTISED_FORMATS(MATMULS)
FOUR_BIT_FORMATS(FOUR_BIT_MATMULS)
FLOAT_FORMATS(FLOAT_MATMULS)
