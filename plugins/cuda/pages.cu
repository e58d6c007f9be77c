// Keys and values into their pages, turned by RoPE on the way: a warp has a head of a token.
//
//   llmir_rope_append   heads of q, k: norm over the head where there is one, then RoPE; q' goes to
//                       y, k' and v to their page
//   llmir_append_kv     k and v to their page
//
//   RoPE:  y[i] = x[i] cos_i - x[i + D/2] sin_i,   y[i + D/2] = x[i + D/2] cos_i + x[i] sin_i
//          table[p] = cos_0 … cos_{D/2-1}, sin_0 …                 (dialect_ext/rope.py)
//   page:  kv[N, 2, H, ps, D] bf16, K and V rounded to nearest, ties to even
//          slot = page * ps + place in it
//
// ABI (see rows.cu); 256 threads, 8 heads a workgroup:
//
//   llmir_rope_append(qkv f32[T, (Hq + 2 H) D], positions i32[T], table f32[C, D], slots i32[T],
//                     q_norm f32[D], k_norm f32[D], kv in place, out y f32[T, Hq, D],
//                     T, Hq, H, ps, D, flags, eps)            grid (ceil(T (Hq + 2 H) / 8))
//       flags: 1 there is a q_norm, 2 a k_norm; where there is none, any pointer stands for it
//   llmir_append_kv(k f32[T, H, D], v f32[T, H, D], slots i32[T], kv in place, T, H, ps, D)
//                                                              grid (ceil(2 T H / 8))
//
// D is even.
#include "group_sum.h"
#include "numbers.h"

constexpr u32 kHasQNorm = 1, kHasKNorm = 2;
constexpr u32 kHeadsOfGroup = kGroup / kWarp;

// The row of a slot: K's is `which` 0, V's 1.
INLINE u16 *row_of(u16 *kv, u32 slot, u32 which, u32 head, u32 heads, u32 page_size, u32 dim) {
  const u32 page = slot / page_size, place = slot % page_size;
  return kv + (((u64)page * 2 + which) * heads + head) * page_size * dim + (u64)place * dim;
}

KERNEL(256)
llmir_rope_append(const float *qkv, const u32 *positions, const float *table, const u32 *slots,
                  const float *q_norm, const float *k_norm, u16 *kv, float *y, u32 tokens,
                  u32 q_heads, u32 heads, u32 page_size, u32 dim, u32 flags, u32 eps_bits) {
  const u32 lane = thread_id() % kWarp, all_heads = q_heads + 2 * heads, half = dim / 2;
  const u32 item = group_x() * kHeadsOfGroup + thread_id() / kWarp;
  const u32 token = item / all_heads, at = item % all_heads;
  if (token >= tokens) return;
  const float *x = qkv + ((u64)token * all_heads + at) * dim;
  if (at >= q_heads + heads) {
    u16 *to = row_of(kv, slots[token], 1, at - q_heads - heads, heads, page_size, dim);
    for (u32 d = lane; d < dim; d += kWarp) to[d] = (u16)to_bf16(x[d]);
    return;
  }
  const bool is_q = at < q_heads;
  const float *norm = is_q ? q_norm : k_norm;
  const bool has_norm = flags & (is_q ? kHasQNorm : kHasKNorm);
  float inverse = 1;
  if (has_norm) {
    float squares = 0;
    for (u32 d = lane; d < dim; d += kWarp) squares = __builtin_fmaf(x[d], x[d], squares);
    inverse = 1.0f / __builtin_sqrtf(warp_sum(squares) / (float)dim + float_of(eps_bits));
  }
  const float *turn = table + (u64)positions[token] * dim;
  for (u32 i = lane; i < half; i += kWarp) {
    float a = x[i], b = x[i + half];
    if (has_norm) {
      a = a * inverse * norm[i];
      b = b * inverse * norm[i + half];
    }
    const float cosine = turn[i], sine = turn[i + half];
    const float first = a * cosine - b * sine, second = b * cosine + a * sine;
    if (is_q) {
      float *to = y + ((u64)token * q_heads + at) * dim;
      to[i] = first;
      to[i + half] = second;
    } else {
      u16 *to = row_of(kv, slots[token], 0, at - q_heads, heads, page_size, dim);
      to[i] = (u16)to_bf16(first);
      to[i + half] = (u16)to_bf16(second);
    }
  }
}

KERNEL(256)
llmir_append_kv(const float *k, const float *v, const u32 *slots, u16 *kv, u32 tokens, u32 heads,
                u32 page_size, u32 dim) {
  const u32 lane = thread_id() % kWarp, item = group_x() * kHeadsOfGroup + thread_id() / kWarp;
  const u32 token = item / (2 * heads), which = item / heads % 2, head = item % heads;
  if (token >= tokens) return;
  const float *x = (which ? v : k) + ((u64)token * heads + head) * dim;
  u16 *to = row_of(kv, slots[token], which, head, heads, page_size, dim);
  for (u32 d = lane; d < dim; d += kWarp) to[d] = (u16)to_bf16(x[d]);
}
