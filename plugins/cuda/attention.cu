// Causal attention of a ragged batch over a paged KV cache, on the matrix unit.
//
//   s[t, h, j] = scale q[t, h] · K(j, h / G),   y[t, h] = Σ_j e^s V(j, h / G) / Σ_j e^s
//   over the positions  max(0, positions[t] - window + 1) <= j <= positions[t];  window 0: none
//   K(j, g) = kv[page_table[token_seq[t], j / ps], 0, g, j % ps, :];  V: index 1
//
// Shape legend: T tokens, S sequences, P page-table columns, N pages, Hq query heads, H KV heads,
// G = Hq / H <= 16, ps tokens a page (a power of two), D head dim.
//
// Arithmetic.  q is three pieces of bf16, which is all of a float32; a weight e^s two; K and V are
// bf16.  The context is cut at fixed positions: into chunks of 128, a chunk into steps of 32.
// A chunk has a maximum, a sum and a result of its own (Milakov & Gimelshein, 2018, step by step);
// a row's chunks are put together in their order.  A step or a chunk that has none of a row's
// positions leaves the row's bits as they are.  So the bits of a row depend on neither T nor on
// which of the two ways below is taken:
//   llmir_attend_split and llmir_combine   a warp for each chunk of a token: few tokens
//   llmir_attend                           a warp for all chunks of floor(16 / G) tokens: many
//
// A warp has sixteen rows, (token, head of the group) pairs, and the KV head they share.  Lane
// 4 g + i holds, of S and of the result, rows g and g + 8.  Which columns of K are which of a
// product is free: product m of 16 takes those that make a lane read 16 bytes on end.  The same
// goes for the columns of V among the results.
//
// Nothing is read of pages beyond a tile's last position, nor before its first.
//
// ABI (see rows.cu); D is HEAD_DIM, a macro, 64 or 128:
//
//   llmir_attend_split(q f32[T, Hq, D], kv bf16[N, 2, H, ps, D], page_table i32[S, P],
//                      token_seq i32[T], positions i32[T], out parts f32[T, C, Hq, D + 2],
//                      T, P, Hq, H, ps, scale, window)      128 threads; grid (ceil(C / 4), H, T)
//       C = ceil(P ps / 128); of a part: the result, the maximum, the sum
//   llmir_combine(parts, positions, out y, T, P, Hq, ps, window)
//                                                           128 threads; grid (ceil(T Hq / 4))
//   llmir_attend(q, kv, page_table, token_seq, positions, y in place, T, P, Hq, H, ps, scale,
//                window)        128 threads; grid (ceil(ceil(T / floor(16 / G)) / 4), H)
#include "numbers.h"

#if !defined(HEAD_DIM)
#error "HEAD_DIM must be given"
#endif

constexpr u32 kDim = HEAD_DIM;
constexpr u32 kChunk = 128, kStep = 32;
constexpr u32 kHalves = kDim / 64;   // of a row of V: 64 numbers, 8 for each of 8 lanes
constexpr u32 kProducts = kDim / 16;
constexpr u32 kPieces = 3, kWeightPieces = 2;
constexpr u32 kWarpsOfGroup = 4;
constexpr float kNone = -__builtin_huge_valf();

struct Attention {
  const float *q;
  const u16 *kv;
  const u32 *page_table, *token_seq, *positions;
  u32 tokens, table_columns, q_heads, heads, page_shift;
  float scale;  // times log2(e)
  u32 window;
};

INLINE u32 log2_of(u32 x) { return 31 - (u32)__builtin_clz(x); }

INLINE Attention attention_of(const float *q, const u16 *kv, const u32 *page_table,
                              const u32 *token_seq, const u32 *positions, u32 tokens,
                              u32 table_columns, u32 q_heads, u32 heads, u32 page_size,
                              u32 scale_bits, u32 window) {
  return {q,      kv,    page_table, token_seq, positions, tokens, table_columns, q_heads, heads,
          log2_of(page_size), float_of(scale_bits) * kLog2E, window};
}

INLINE u32 first_position(u32 position, u32 window) {
  return window && position >= window ? position - window + 1 : 0;
}

// A warp's rows: `count` tokens from `first` on, all heads of a group; of a sequence.
struct Tile {
  u32 head, sequence;
  u32 from, to;            // the positions that any row attends to: [from, to)
  u32 row_from[2], row_to[2];  // those of this lane's two rows; empty where there is no row
};

// What a lane has of its two rows: maximum, sum, and the results that it holds of them.
struct State {
  float most[2], sum[2], result[kHalves * 8][4];
};

INLINE State nothing() {
  State s;
  UNROLL for (u32 i = 0; i < 2; i++) s.most[i] = kNone, s.sum[i] = 0;
  UNROLL for (u32 n = 0; n < kHalves * 8; n++) UNROLL for (u32 i = 0; i < 4; i++) s.result[n][i] = 0;
  return s;
}

// q of a warp's rows as operands, in shared memory, for want of registers: a lane reads what it
// wrote.  Product 2 m + h takes columns 32 m + 8 i + 4 h and the 3 after it.
struct Query {
  u32x4 operand[kPieces][kProducts][kWarp];
};
typedef SHARED_POINTER Query SharedQuery;

INLINE void load_query(const float *const (&rows)[2], SharedQuery &query) {
  const u32 lane = thread_id() % kWarp;
  UNROLL for (u32 m = 0; m < kProducts / 2; m++)
    UNROLL for (u32 h = 0; h < 2; h++) {
      float x[2][4] = {};
      UNROLL for (u32 r = 0; r < 2; r++)
        if (rows[r])
          UNROLL for (u32 j = 0; j < 4; j++) x[r][j] = rows[r][32 * m + 8 * (lane % 4) + 4 * h + j];
      UNROLL for (u32 piece = 0; piece < kPieces; piece++) {
        u32 pairs[2][2];
        UNROLL for (u32 r = 0; r < 2; r++)
          UNROLL for (u32 j = 0; j < 2; j++) {
            const u32 low = take_piece(x[r][2 * j]);
            pairs[r][j] = low | take_piece(x[r][2 * j + 1]) << 16;
          }
        query.operand[piece][2 * m + h][lane] =
            u32x4{pairs[0][0], pairs[1][0], pairs[0][1], pairs[1][1]};
      }
    }
}

INLINE const u16 *row_at(const Attention &a, const Tile &tile, u32 position, u32 which) {
  const u32 page = a.page_table[(u64)tile.sequence * a.table_columns + (position >> a.page_shift)];
  const u32 place = position & ((1u << a.page_shift) - 1);
  return a.kv +
         (((((u64)page * 2 + which) * a.heads + tile.head) << a.page_shift) + place) * kDim;
}

// The positions [at, at + 32), of which any row may want none, some or all.
INLINE void take_step(const Attention &a, const Tile &tile, const SharedQuery &query, u32 at,
                      State &state) {
  const u32 lane = thread_id() % kWarp, group = lane / 4, in_group = lane % 4;
  float s[4][4] = {};
  UNROLL for (u32 n = 0; n < 4; n++) {
    const u32 position = at + 8 * n + group;
    const bool is_there = position >= tile.from && position < tile.to;
    u32x4 k[kProducts / 2] = {};
    if (is_there) {
      const u16 *row = row_at(a, tile, position, 0);
      UNROLL for (u32 m = 0; m < kProducts / 2; m++)
        k[m] = *(const u32x4 *)(row + 32 * m + 8 * in_group);
    }
    UNROLL for (u32 m = 0; m < kProducts / 2; m++)
      UNROLL for (u32 h = 0; h < 2; h++) {
        const u32 b[2] = {h ? k[m].z : k[m].x, h ? k[m].w : k[m].y};
        UNROLL for (u32 piece = 0; piece < kPieces; piece++) {
          const u32x4 x = query.operand[piece][2 * m + h][lane];
          const u32 q[4] = {x.x, x.y, x.z, x.w};
          multiply_16x8x16(s[n], q, b);
        }
      }
  }
  float scaled[2];  // what each row's results so far are multiplied with
  UNROLL for (u32 r = 0; r < 2; r++) {
    float most = kNone;
    UNROLL for (u32 n = 0; n < 4; n++)
      UNROLL for (u32 j = 0; j < 2; j++) {
        const u32 position = at + 8 * n + 2 * in_group + j;
        float &x = s[n][2 * r + j];
        x = position >= tile.row_from[r] && position < tile.row_to[r] ? x * a.scale : kNone;
        most = __builtin_fmaxf(most, x);
      }
    most = __builtin_fmaxf(most, from_lane_xor(most, 1));
    most = __builtin_fmaxf(most, from_lane_xor(most, 2));
    const float before = state.most[r], now = __builtin_fmaxf(before, most);
    scaled[r] = before == now ? 1.0f : exp2_fast(before - now);
    state.most[r] = now;
    state.sum[r] *= scaled[r];
    UNROLL for (u32 n = 0; n < 4; n++)
      UNROLL for (u32 j = 0; j < 2; j++) {
        float &x = s[n][2 * r + j];
        x = x == kNone ? 0.0f : exp2_fast(x - now);
        state.sum[r] += x;
      }
  }
  UNROLL for (u32 n = 0; n < kHalves * 8; n++)
    UNROLL for (u32 i = 0; i < 4; i++) state.result[n][i] *= scaled[i / 2];
  UNROLL for (u32 part = 0; part < 2; part++) {
    u32 weights[kWeightPieces][4];
    UNROLL for (u32 i = 0; i < 4; i++) {
      float *pair = &s[2 * part + i / 2][2 * (i % 2)];
      UNROLL for (u32 piece = 0; piece < kWeightPieces; piece++) {
        const u32 low = take_piece(pair[0]), high = take_piece(pair[1]);
        weights[piece][i] = low | high << 16;
      }
    }
    const u16 *rows[4];
    UNROLL for (u32 j = 0; j < 4; j++) {
      const u32 position = at + 16 * part + 2 * in_group + j % 2 + 8 * (j / 2);
      rows[j] = position >= tile.from && position < tile.to ? row_at(a, tile, position, 1) : 0;
    }
    UNROLL for (u32 half = 0; half < kHalves; half++) {
      u32 v[4][4];
      UNROLL for (u32 j = 0; j < 4; j++) {
        u32x4 x = {};
        if (rows[j]) x = *(const u32x4 *)(rows[j] + 64 * half + 8 * group);
        v[j][0] = x.x, v[j][1] = x.y, v[j][2] = x.z, v[j][3] = x.w;
      }
      UNROLL for (u32 n = 0; n < 8; n++) {
        const u32 selector = n % 2 ? 0x7632 : 0x5410;
        const u32 b[2] = {pick_bytes(v[0][n / 2], v[1][n / 2], selector),
                          pick_bytes(v[2][n / 2], v[3][n / 2], selector)};
        UNROLL for (u32 piece = 0; piece < kWeightPieces; piece++)
          multiply_16x8x16(state.result[8 * half + n], weights[piece], b);
      }
    }
  }
}

// A chunk of its own, its sums of all lanes.
INLINE State take_chunk(const Attention &a, const Tile &tile, const SharedQuery &query,
                         u32 chunk) {
  State state = nothing();
  ROLLED for (u32 at = chunk * kChunk; at < (chunk + 1) * kChunk; at += kStep)
    if (at < tile.to && at + kStep > tile.from) take_step(a, tile, query, at, state);
  UNROLL for (u32 r = 0; r < 2; r++) {
    state.sum[r] += from_lane_xor(state.sum[r], 1);
    state.sum[r] += from_lane_xor(state.sum[r], 2);
  }
  return state;
}

// How much of what was before, and of what is put to it, there is in both together.
struct Shares {
  float most, before, after;
};
INLINE Shares shares_of(float before, float after) {
  const float most = __builtin_fmaxf(before, after);
  return {most, before == most ? 1.0f : exp2_fast(before - most),
          after == most ? 1.0f : exp2_fast(after - most)};
}
INLINE float together(float before, float after, const Shares &s) {
  return __builtin_fmaf(after, s.after, before * s.before);
}

// The number of V's row that result n of a lane is, for the row's i-th: see operands of V above.
INLINE u32 column_of(u32 n, u32 i, u32 in_group) {
  return n / 8 * 64 + 8 * (2 * in_group + i) + n % 8;
}

// The lane's rows of a tile that begins at token `first` and has `count`; their q.
INLINE void set_rows(const Attention &a, Tile &tile, u32 first, u32 count, SharedQuery &query) {
  const u32 per_head = a.q_heads / a.heads;
  const float *rows[2];
  UNROLL for (u32 r = 0; r < 2; r++) {
    const u32 row = thread_id() % kWarp / 4 + 8 * r, token = first + row / per_head;
    const bool is_there = row / per_head < count;
    const u32 position = is_there ? a.positions[token] : 0;
    tile.row_from[r] = is_there ? first_position(position, a.window) : 0;
    tile.row_to[r] = is_there ? position + 1 : 0;
    rows[r] = is_there
                  ? a.q + ((u64)token * a.q_heads + tile.head * per_head + row % per_head) * kDim
                  : 0;
  }
  load_query(rows, query);
}

KERNEL(128)
llmir_attend_split(const float *q, const u16 *kv, const u32 *page_table, const u32 *token_seq,
                   const u32 *positions, float *parts, u32 tokens, u32 table_columns, u32 q_heads,
                   u32 heads, u32 page_size, u32 scale_bits, u32 window) {
  SHARED Query queries[kWarpsOfGroup];
  const Attention a = attention_of(q, kv, page_table, token_seq, positions, tokens, table_columns,
                                   q_heads, heads, page_size, scale_bits, window);
  const u32 lane = thread_id() % kWarp, token = group_z(), per_head = q_heads / heads;
  const u32 chunk = group_x() * kWarpsOfGroup + thread_id() / kWarp;
  const u32 chunks = (table_columns * page_size + kChunk - 1) / kChunk;
  Tile tile;
  tile.head = group_y();
  tile.sequence = token_seq[token];
  tile.from = first_position(positions[token], window);
  tile.to = positions[token] + 1;
  if (chunk * kChunk >= tile.to || (chunk + 1) * kChunk <= tile.from) return;  // the whole warp
  SharedQuery &query = queries[thread_id() / kWarp];
  set_rows(a, tile, token, 1, query);
  const State state = take_chunk(a, tile, query, chunk);
  UNROLL for (u32 r = 0; r < 2; r++) {
    const u32 row = lane / 4 + 8 * r;
    if (row >= per_head) continue;
    float *part = parts + (((u64)token * chunks + chunk) * q_heads + tile.head * per_head + row) *
                              (kDim + 2);
    UNROLL for (u32 n = 0; n < kHalves * 8; n++)
      UNROLL for (u32 i = 0; i < 2; i++)
        part[column_of(n, i, lane % 4)] = state.result[n][2 * r + i];
    if (lane % 4 == 0) part[kDim] = state.most[r], part[kDim + 1] = state.sum[r];
  }
}

KERNEL(128)
llmir_combine(const float *parts, const u32 *positions, float *y, u32 tokens, u32 table_columns,
              u32 q_heads, u32 page_size, u32 window) {
  const u32 lane = thread_id() % kWarp, item = group_x() * kWarpsOfGroup + thread_id() / kWarp;
  const u32 token = item / q_heads, head = item % q_heads;
  if (token >= tokens) return;
  const u32 chunks = (table_columns * page_size + kChunk - 1) / kChunk;
  const u32 from = first_position(positions[token], window), to = positions[token] + 1;
  float most = kNone, sum = 0, result[kDim / kWarp] = {};
  for (u32 chunk = from / kChunk; chunk * kChunk < to; chunk++) {
    const float *part = parts + (((u64)token * chunks + chunk) * q_heads + head) * (kDim + 2);
    const Shares shares = shares_of(most, part[kDim]);
    most = shares.most;
    sum = together(sum, part[kDim + 1], shares);
    UNROLL for (u32 i = 0; i < kDim / kWarp; i++)
      result[i] = together(result[i], part[i * kWarp + lane], shares);
  }
  UNROLL for (u32 i = 0; i < kDim / kWarp; i++)
    y[((u64)token * q_heads + head) * kDim + i * kWarp + lane] = result[i] / sum;
}

KERNEL(128)
llmir_attend(const float *q, const u16 *kv, const u32 *page_table, const u32 *token_seq,
             const u32 *positions, float *y, u32 tokens, u32 table_columns, u32 q_heads, u32 heads,
             u32 page_size, u32 scale_bits, u32 window) {
  SHARED Query queries[kWarpsOfGroup];
  const Attention a = attention_of(q, kv, page_table, token_seq, positions, tokens, table_columns,
                                   q_heads, heads, page_size, scale_bits, window);
  const u32 lane = thread_id() % kWarp, per_head = q_heads / heads, of_tile = 16 / per_head;
  const u32 first = (group_x() * kWarpsOfGroup + thread_id() / kWarp) * of_tile;
  if (first >= tokens) return;  // the whole warp
  const u32 end = first + of_tile < tokens ? first + of_tile : tokens;
  Tile tile;
  tile.head = group_y();
  // Neighbours of one sequence go together; the rows of others wait for their turn.
  for (u32 at = first; at < end;) {
    tile.sequence = token_seq[at];
    u32 next = at;
    tile.from = ~0u;
    tile.to = 0;
    for (; next < end && token_seq[next] == tile.sequence; next++) {
      const u32 from = first_position(positions[next], window), to = positions[next] + 1;
      tile.from = from < tile.from ? from : tile.from;
      tile.to = to > tile.to ? to : tile.to;
    }
    SharedQuery &query = queries[thread_id() / kWarp];
    set_rows(a, tile, at, next - at, query);
    State all = nothing();
    for (u32 chunk = tile.from / kChunk; chunk * kChunk < tile.to; chunk++) {
      const State state = take_chunk(a, tile, query, chunk);
      UNROLL for (u32 r = 0; r < 2; r++) {
        const Shares shares = shares_of(all.most[r], state.most[r]);
        all.most[r] = shares.most;
        all.sum[r] = together(all.sum[r], state.sum[r], shares);
        UNROLL for (u32 n = 0; n < kHalves * 8; n++)
          UNROLL for (u32 i = 0; i < 2; i++)
            all.result[n][2 * r + i] = together(all.result[n][2 * r + i],
                                                state.result[n][2 * r + i], shares);
      }
    }
    UNROLL for (u32 r = 0; r < 2; r++) {
      const u32 row = lane / 4 + 8 * r, own = at + row / per_head;
      if (own >= next) continue;
      float *to = y + ((u64)own * q_heads + tile.head * per_head + row % per_head) * kDim;
      UNROLL for (u32 n = 0; n < kHalves * 8; n++)
        UNROLL for (u32 i = 0; i < 2; i++)
          to[column_of(n, i, lane % 4)] = all.result[n][2 * r + i] / all.sum[r];
    }
    at = next;
  }
}
