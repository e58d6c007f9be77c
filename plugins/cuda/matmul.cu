// A product with a packed weight, on the matrix unit, for any number of tokens.
//
//   y[t, n] = Σ_k a[t, k] w[n, k] + bias[n] + residual[t, n]
//   gated:    w's tiles are of gate and up in turn; y[t, n] = gate' up, see numbers.h
//
// Shape legend: T tokens, N output features, K input features, P pieces of an activation.
//
// Arithmetic.  An activation is P numbers of bf16: one is a rounded to bf16, three are all of a
// float32.  Integer weights are exact in bf16, so what is rounded is the activation and the
// float32 sums, nothing else.  Order of the sums, which depends on neither T nor the kernel:
//   a block of 32 columns: d = Σ_p Σ_h of its two products h;   c += scale d, += min Σ_k a
//   a slice of 8 blocks: c, its blocks one after the other (bf16 weights: its products)
//   y: the slices one after the other
// Weights stay packed in memory and are widened in registers.
//
// `acts` is llmir_round's: P × T rows of K bf16, then for each block the sums of its columns,
// float32 [K / 32][T rounded up to 8].
//
// ABI (see rows.cu), of every kernel here but the first; 256 threads:
//
//   llmir_round(x f32[T, K], norm f32[K], out acts, T, K, P, has_norm, eps)    grid (T up to 8)
//       a = x / sqrt(mean(x²) + eps) norm, or x
//   llmir_matmul_…(acts, weight i8[…], bias f32[N], residual f32[T, N], y f32[T, N] in place,
//                  T, K, N, section, flags, gate)
//       section: blocks that share a header;  flags: 1 a bias, 2 a residual;  gate: numbers.h
//       where there is no bias or residual any pointer stands for it
//     _one        T ≤ 8; a tile; not gated       grid (tiles)
//     _one_gated  T ≤ 8; two tiles               grid (tiles / 2)
//     _some       32 tokens, two tiles           grid (ceil(tiles / 2), ceil(T / 32))
//     _many       128 or 64 (P = 3) tokens,
//                 eight tiles                    grid (ceil(T / tokens), ceil(tiles / 8))
//
// Compiled with FORMAT, see packed.h, and PIECES.
#include "group_sum.h"
#include "packed.h"

#if !defined(FORMAT) || !defined(PIECES)
#error "FORMAT and PIECES must be given"
#endif

constexpr u32 kHasBias = 1, kHasResidual = 2;
constexpr u32 kWarps = kGroup / kWarp;

struct Problem {
  const u16 *acts;
  const float *sums;
  Matrix weight;
  const float *bias, *residual;
  float *y;
  u32 tokens, columns, rows, tiles, padded_tokens, flags, gate;
};

INLINE Problem problem_of(const u16 *acts, const u8 *weight, const float *bias,
                          const float *residual, float *y, u32 tokens, u32 columns, u32 rows,
                          u32 section, u32 flags, u32 gate) {
  const u32 blocks = columns / kBlock, tiles = (rows + kTileRows - 1) / kTileRows;
  const float *sums = (const float *)(acts + (u64)PIECES * tokens * columns);
  return {acts,    sums, {weight, blocks, section}, bias, residual, y, tokens,
          columns, rows, gate ? 2 * tiles : tiles,  (tokens + 7) / 8 * 8, flags, gate};
}

INLINE void store(const Problem &p, u32 token, u32 row, float sum) {
  if (token >= p.tokens || row >= p.rows) return;
  const u64 at = (u64)token * p.rows + row;
  if (p.flags & kHasBias) sum += p.bias[row];
  if (p.flags & kHasResidual) sum += p.residual[at];
  p.y[at] = sum;
}

// One block's part of c, for a tile and eight tokens.  sums: of the columns, of two tokens.
template <Format F>
INLINE void add_block(float (&c)[4], const u32 (&a)[2][4], const u32 (&b)[PIECES][2][2],
                      f32x2 scales, f32x2 mins, f32x2 sums) {
  if constexpr (is_float(F)) {
    UNROLL for (u32 h = 0; h < 2; h++)
      UNROLL for (u32 piece = 0; piece < PIECES; piece++) multiply_16x8x16(c, a[h], b[piece][h]);
    return;
  }
  float d[4] = {};
  UNROLL for (u32 piece = 0; piece < PIECES; piece++)
    UNROLL for (u32 h = 0; h < 2; h++) multiply_16x8x16(d, a[h], b[piece][h]);
  c[0] = __builtin_fmaf(scales.x, d[0], c[0]);
  c[1] = __builtin_fmaf(scales.x, d[1], c[1]);
  c[2] = __builtin_fmaf(scales.y, d[2], c[2]);
  c[3] = __builtin_fmaf(scales.y, d[3], c[3]);
  if constexpr (has_min(F)) {
    c[0] = __builtin_fmaf(mins.x, sums.x, c[0]);
    c[1] = __builtin_fmaf(mins.x, sums.y, c[1]);
    c[2] = __builtin_fmaf(mins.y, sums.x, c[2]);
    c[3] = __builtin_fmaf(mins.y, sums.y, c[3]);
  }
}

INLINE f32x2 sums_of(const Problem &p, u32 block, u32 token) {
  if (token >= p.padded_tokens) return f32x2{0, 0};
  return *(const f32x2 *)(p.sums + (u64)block * p.padded_tokens + token);
}

KERNEL(256)
llmir_round(const float *x, const float *norm, u8 *acts, u32 tokens, u32 columns, u32 pieces,
            u32 has_norm, u32 eps_bits) {
  const u32 token = group_x(), lane = thread_id() % kWarp, warp = thread_id() / kWarp;
  const u32 padded_tokens = (tokens + 7) / 8 * 8;
  u16 *rounded = (u16 *)acts;
  float *sums = (float *)(rounded + (u64)pieces * tokens * columns);
  const bool is_there = token < tokens;  // the same for all threads
  const float *row = x + (u64)token * columns;
  const float inverse = is_there && has_norm ? inverse_root_mean(row, columns, float_of(eps_bits)) : 1;
  for (u32 block = warp; block < columns / kBlock; block += kWarps) {
    const u32 k = block * kBlock + lane;
    float a = 0;
    if (is_there) a = has_norm ? row[k] * inverse * norm[k] : row[k];
    float sum = 0;
    for (u32 piece = 0; piece < pieces; piece++) {
      const u32 bits = take_piece(a);
      sum += from_bf16(bits);
      if (is_there) rounded[((u64)piece * tokens + token) * columns + k] = (u16)bits;
    }
    sum = warp_sum(sum);
    if (lane == 0) sums[(u64)block * padded_tokens + token] = sum;
  }
}

// -- few tokens: each warp has slices of its own, all tokens and all tiles of the workgroup -------

// kTiles tiles, kColumns times eight tokens.
template <Format F, u32 kTiles, u32 kColumns>
INLINE void slice_sums(const Problem &p, u32 first_tile, u32 first_token, u32 slice,
                       float (&c)[kTiles][kColumns][4]) {
  constexpr u32 kAhead = is_float(F) ? 4 : 8;  // blocks whose weights are asked for together
  const u32 lane = thread_id() % kWarp, first = slice * kSliceBlocks;
  const u32 end = first + kSliceBlocks < p.weight.blocks ? first + kSliceBlocks : p.weight.blocks;
  for (u32 from = first; from < end; from += kAhead) {
    Stored<F> stored[kAhead][kTiles];
    UNROLL for (u32 j = 0; j < kAhead; j++)
      UNROLL for (u32 tile = 0; tile < kTiles; tile++)
        if (from + j < end && first_tile + tile < p.tiles)
          stored[j][tile] = load_block<F>(p.weight, first_tile + tile, from + j, lane);
        else
          stored[j][tile] = {};
    UNROLL for (u32 j = 0; j < kAhead; j++) {
      const u32 block = from + j;
      if (block >= end) break;
      u32 a[kTiles][2][4];
      UNROLL for (u32 tile = 0; tile < kTiles; tile++)
        UNROLL for (u32 h = 0; h < 2; h++) operand<F>(stored[j][tile], h, a[tile][h]);
      UNROLL for (u32 column = 0; column < kColumns; column++) {
        const u32 token = first_token + 8 * column + lane / 4;
        u32 b[PIECES][2][2] = {};
        if (token < p.tokens)
          UNROLL for (u32 piece = 0; piece < PIECES; piece++)
            UNROLL for (u32 h = 0; h < 2; h++)
              activations<F>(p.acts + ((u64)piece * p.tokens + token) * p.columns + block * kBlock,
                             h, lane, b[piece][h]);
        f32x2 sums = {};
        if (has_min(F)) sums = sums_of(p, block, first_token + 8 * column + 2 * (lane % 4));
        UNROLL for (u32 tile = 0; tile < kTiles; tile++)
          add_block<F>(c[tile][column], a[tile], b, row_numbers<F>(stored[j][tile].scales),
                       row_numbers<F>(stored[j][tile].mins), sums);
      }
    }
  }
}

template <Format F, u32 kTiles, u32 kColumns>
INLINE void few_tokens(const Problem &p, u32 first_tile, u32 first_token) {
  constexpr u32 kTokens = 8 * kColumns, kCells = kTileRows * kTokens;
  constexpr u32 kMine = (kCells + kGroup - 1) / kGroup;
  SHARED float shared[kWarps][kTiles][kTileRows][kTokens];
  const u32 warp = thread_id() / kWarp, lane = thread_id() % kWarp;
  const u32 slices = (p.weight.blocks + kSliceBlocks - 1) / kSliceBlocks;
  float sums[kMine][kTiles] = {};
  for (u32 from = 0; from < slices; from += kWarps) {
    if (from + warp < slices) {
      float c[kTiles][kColumns][4] = {};
      slice_sums<F, kTiles, kColumns>(p, first_tile, first_token, from + warp, c);
      UNROLL for (u32 tile = 0; tile < kTiles; tile++)
        UNROLL for (u32 column = 0; column < kColumns; column++)
          UNROLL for (u32 i = 0; i < 4; i++)
            shared[warp][tile][lane / 4 * 2 + i / 2][8 * column + lane % 4 * 2 + i % 2] =
                c[tile][column][i];
    }
    sync_group();
    UNROLL for (u32 mine = 0; mine < kMine; mine++) {
      const u32 cell = thread_id() + mine * kGroup;
      if (cell < kCells)
        for (u32 w = 0; w < kWarps && from + w < slices; w++)
          UNROLL for (u32 tile = 0; tile < kTiles; tile++)
            sums[mine][tile] += shared[w][tile][cell % kTileRows][cell / kTileRows];
    }
    sync_group();
  }
  UNROLL for (u32 mine = 0; mine < kMine; mine++) {
    const u32 cell = thread_id() + mine * kGroup;
    const u32 row = cell % kTileRows, token = first_token + cell / kTileRows;
    if (cell >= kCells) break;
    if constexpr (kTiles == 2) {
      if (p.gate) {
        store(p, token, first_tile / 2 * kTileRows + row,
              gated(p.gate, sums[mine][0], sums[mine][1]));
        continue;
      }
    }
    UNROLL for (u32 tile = 0; tile < kTiles; tile++)
      store(p, token, (first_tile + tile) * kTileRows + row, sums[mine][tile]);
  }
}

KERNEL(256)
llmir_matmul_one(const u16 *acts, const u8 *weight, const float *bias, const float *residual,
                 float *y, u32 tokens, u32 columns, u32 rows, u32 section, u32 flags, u32 gate) {
  const Problem p = problem_of(acts, weight, bias, residual, y, tokens, columns, rows, section,
                               flags, gate);
  few_tokens<FORMAT, 1, 1>(p, group_x(), 0);
}

KERNEL(256)
llmir_matmul_one_gated(const u16 *acts, const u8 *weight, const float *bias,
                       const float *residual, float *y, u32 tokens, u32 columns, u32 rows,
                       u32 section, u32 flags, u32 gate) {
  const Problem p = problem_of(acts, weight, bias, residual, y, tokens, columns, rows, section,
                               flags, gate);
  few_tokens<FORMAT, 2, 1>(p, 2 * group_x(), 0);
}

KERNEL(256)
llmir_matmul_some(const u16 *acts, const u8 *weight, const float *bias, const float *residual,
                  float *y, u32 tokens, u32 columns, u32 rows, u32 section, u32 flags, u32 gate) {
  const Problem p = problem_of(acts, weight, bias, residual, y, tokens, columns, rows, section,
                               flags, gate);
  few_tokens<FORMAT, 2, 4>(p, 2 * group_x(), 32 * group_y());
}

// -- many tokens: activations in shared memory, fetched some blocks ahead -------------------------

constexpr u32 kManyColumns = PIECES == 1 ? 4 : 2;      // times eight tokens, of a warp
constexpr u32 kManyTokens = 4 * 8 * kManyColumns;      // of a workgroup: warps are 2 (tiles) × 4
constexpr u32 kManyTiles = 4;                          // of a warp
constexpr u32 kStages = PIECES == 1 ? 4 : 3;
constexpr u32 kRowPitch = kBlock + 8;                  // numbers; no two rows in the same banks

KERNEL(256)
llmir_matmul_many(const u16 *acts, const u8 *weight, const float *bias, const float *residual,
                  float *y, u32 tokens, u32 columns, u32 rows, u32 section, u32 flags, u32 gate) {
  constexpr Format F = FORMAT;
  SHARED u16 stages[kStages][PIECES][kManyTokens][kRowPitch] __attribute__((aligned(16)));
  const Problem p = problem_of(acts, weight, bias, residual, y, tokens, columns, rows, section,
                               flags, gate);
  const u32 lane = thread_id() % kWarp, warp = thread_id() / kWarp;
  const u32 first_tile = group_y() * 2 * kManyTiles + warp / 4 * kManyTiles;
  const u32 group_token = group_x() * kManyTokens, own_token = warp % 4 * 8 * kManyColumns;
  const u32 blocks = p.weight.blocks;

  auto fetch = [&](u32 block) {
    if (block < blocks)
      UNROLL for (u32 i = 0; i < PIECES * kManyTokens * 4 / kGroup; i++) {
        const u32 chunk = thread_id() + i * kGroup, part = chunk % 4, row = chunk / 4;
        const u32 piece = row / kManyTokens, token = group_token + row % kManyTokens;
        const bool is_there = token < p.tokens;
        const u64 from = ((u64)piece * p.tokens + (is_there ? token : 0)) * p.columns;
        copy_16_async(&stages[block % kStages][piece][row % kManyTokens][8 * part],
                      p.acts + from + block * kBlock + 8 * part, is_there);
      }
    commit_copies();
  };
  auto load = [&](u32 block, Stored<F>(&stored)[kManyTiles]) {
    UNROLL for (u32 tile = 0; tile < kManyTiles; tile++)
      if (block < blocks && first_tile + tile < p.tiles)
        stored[tile] = load_block<F>(p.weight, first_tile + tile, block, lane);
      else
        stored[tile] = {};
  };

  float sums[kManyTiles][kManyColumns][4] = {}, c[kManyTiles][kManyColumns][4] = {};
  Stored<F> stored[kManyTiles], next[kManyTiles];
  for (u32 block = 0; block + 1 < kStages; block++) fetch(block);
  load(0, stored);
  for (u32 block = 0; block < blocks; block++) {
    wait_for_copies<kStages - 2>();
    sync_group();  // what is fetched now takes the place of what was read before this
    fetch(block + kStages - 1);
    load(block + 1, next);
    u32 b[kManyColumns][PIECES][2][2];
    UNROLL for (u32 column = 0; column < kManyColumns; column++)
      UNROLL for (u32 piece = 0; piece < PIECES; piece++)
        UNROLL for (u32 h = 0; h < 2; h++)
          activations<F>((const u16 *)&stages[block % kStages][piece]
                                             [own_token + 8 * column + lane / 4][0],
                         h, lane, b[column][piece][h]);
    f32x2 of_columns[kManyColumns] = {};
    if constexpr (has_min(F))
      UNROLL for (u32 column = 0; column < kManyColumns; column++)
        of_columns[column] =
            sums_of(p, block, group_token + own_token + 8 * column + 2 * (lane % 4));
    UNROLL for (u32 tile = 0; tile < kManyTiles; tile++) {
      u32 a[2][4];
      UNROLL for (u32 h = 0; h < 2; h++) operand<F>(stored[tile], h, a[h]);
      UNROLL for (u32 column = 0; column < kManyColumns; column++)
        add_block<F>(c[tile][column], a, b[column], row_numbers<F>(stored[tile].scales),
                     row_numbers<F>(stored[tile].mins), of_columns[column]);
    }
    if ((block + 1) % kSliceBlocks == 0 || block + 1 == blocks)
      UNROLL for (u32 tile = 0; tile < kManyTiles; tile++)
        UNROLL for (u32 column = 0; column < kManyColumns; column++)
          UNROLL for (u32 i = 0; i < 4; i++) {
            sums[tile][column][i] += c[tile][column][i];
            c[tile][column][i] = 0;
          }
    UNROLL for (u32 tile = 0; tile < kManyTiles; tile++) stored[tile] = next[tile];
  }
  UNROLL for (u32 tile = 0; tile < kManyTiles; tile++)
    UNROLL for (u32 column = 0; column < kManyColumns; column++)
      UNROLL for (u32 i = 0; i < 4; i++) {
        const u32 token = group_token + own_token + 8 * column + lane % 4 * 2 + i % 2;
        const u32 row = lane / 4 * 2 + i / 2, at = first_tile + tile;
        if (!p.gate)
          store(p, token, at * kTileRows + row, sums[tile][column][i]);
        else if (tile % 2 == 0)
          store(p, token, at / 2 * kTileRows + row,
                gated(p.gate, sums[tile][column][i], sums[tile + 1][column][i]));
      }
}
