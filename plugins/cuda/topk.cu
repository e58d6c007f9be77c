// llm.topk: the k largest numbers of each row, and the weight of the whole row beside the largest.
// A workgroup is 256 threads.
//
//   values[r, :] = the k largest x[r, n], falling;   ids[r, :] = their n, the lower first of equals
//   weights[r]   = Σ_n e^(x[r, n] - values[r, 0])
//   values and weights NaN, ids -1 where the largest is not finite, or NaN is in the row
//
// A row of some thousands of numbers is one workgroup's; of a longer one the k largest of each of P
// parts are found first, and then the k largest of these lists, number i of list p at i P + p.
//
// ABI, as IREE calls kernels: a pointer for each tensor, those read before those written, then
// 32-bit numbers.  1 <= k <= 256, k P <= 1024, and every part has at least k numbers.
//
//   llmir_topk(x f32[R, N], out values f32[R, k], out ids i32[R, k], out weights f32[R], N, k)
//                                                                            grid (1, R)
//   llmir_topk_of_parts(x f32[R, N], out values f32[R, k, P], out ids i32[R, k, P],
//                       out weights f32[R, P], N, numbers of a part, P, k)   grid (P, R)
//   llmir_topk_of_lists(values, ids, weights, out values f32[R, k], out ids i32[R, k],
//                       out weights f32[R], P, k)                            grid (1, R)
//
// Numbers are compared as integers that rise with them, and by ids where they are equal: no two are
// the same.  The k-th of the threads' largest is a bound that at least k numbers reach, and few more;
// those are ranked by counting.  If more reach it than there is room for, the largest are taken one
// by one.  A row's sum has one order, whatever R is: as of rows.cu, then the parts'.
#include "group_sum.h"

constexpr u32 kRoom = 1024;
constexpr u32 kLowest = 0x007fffff, kHighest = 0xff800000;  // keys of -infinity and infinity
constexpr u32 kNan = 0x7fc00000;
constexpr float kLog2E = 1.44269504088896f;

struct Number {
  u32 key, id;
};
constexpr Number kNothing = {0, ~0u};  // after every number

INLINE bool is_before(Number a, Number b) { return a.key > b.key || (a.key == b.key && a.id < b.id); }

INLINE u32 key_of(u32 bits) {
  if (bits == 0x80000000) bits = 0;  // -0 is 0
  return bits & 0x80000000 ? ~bits : bits | 0x80000000;
}
INLINE u32 bits_of_key(u32 key) { return key & 0x80000000 ? key & 0x7fffffff : ~key; }

// Numbers `begin` to `end` of a row; of lists that are joined, with their ids.
struct Row {
  const u32 *x, *ids;
  u32 begin, end;
};

template <bool kLists>
INLINE Number number_at(const Row &row, u32 n) {
  return {key_of(row.x[n]), kLists ? row.ids[n] : n};
}

INLINE float weight_beside(u32 key, float largest) {
  return key == kLowest ? 0 : exp2_fast((float_of(bits_of_key(key)) - largest) * kLog2E);
}

// Where a workgroup's results go: of rank i to i * stride.
struct Results {
  u32 *values, *ids, *weight;
  u32 stride, k;
  bool is_last;  // of a whole row
};

INLINE void write(const Results &to, u32 rank, u32 bits, u32 id) {
  to.values[rank * to.stride] = bits;
  to.ids[rank * to.stride] = id;
}

// The numbers that thread i has are begin + i, begin + i + 256, …
template <bool kLists>
INLINE Number first_after(const Row &row, Number bound) {
  Number best = kNothing;
  for (u32 n = row.begin + thread_id(); n < row.end; n += kGroup) {
    const Number found = number_at<kLists>(row, n);
    if (is_before(bound, found) && is_before(found, best)) best = found;
  }
  return best;
}

template <bool kLists>
INLINE void find_largest(const Row &row, const float *list_weights, u32 lists, const Results &to) {
  SHARED u32 best_key[kGroup], best_id[kGroup], room_key[kRoom], room_id[kRoom];
  SHARED u32 num_there, is_bad, most, bound_key, bound_id;
  const u32 me = thread_id();
  if (me == 0) num_there = 0, is_bad = 0, most = 0, bound_key = 0, bound_id = ~0u;
  sync_group();
  Number best = kNothing;
  bool bad = false;
  for (u32 n = row.begin + me; n < row.end; n += kGroup) {
    const Number found = number_at<kLists>(row, n);
    bad |= found.key >= kHighest || found.key < kLowest;
    if (is_before(found, best)) best = found;
  }
  best_key[me] = best.key;
  best_id[me] = best.id;
  if (bad) is_bad = 1;
  sync_group();

  u32 rank = 0;
  ROLLED for (u32 i = 0; i < kGroup; i++) rank += is_before({best_key[i], best_id[i]}, best);
  if (rank == 0) most = best.key;
  if (rank == to.k - 1) bound_key = best.key, bound_id = best.id;
  sync_group();
  if (is_bad || (to.is_last && most == kLowest)) {
    for (u32 i = me; i < to.k; i += kGroup) write(to, i, kNan, ~0u);
    if (me == 0) *to.weight = kNan;
    return;
  }

  const Number bound = {bound_key, bound_id};
  const float largest = float_of(bits_of_key(most));
  float sum = 0;
  for (u32 n = row.begin + me; n < row.end; n += kGroup) {
    const Number found = number_at<kLists>(row, n);
    if (!is_before(bound, found)) {
      const u32 at = add_shared(&num_there, 1);
      if (at < kRoom) room_key[at] = found.key, room_id[at] = found.id;
    }
    if (!kLists) sum += weight_beside(found.key, largest);
  }
  for (u32 p = me; p < lists; p += kGroup)
    sum += list_weights[p] * weight_beside(key_of(row.x[p]), largest);
  sum = group_sum(sum);
  if (me == 0) *to.weight = bits_of(sum);

  const u32 count = num_there;
  if (count <= kRoom) {
    for (u32 i = me; i < count; i += kGroup) {
      const Number mine = {room_key[i], room_id[i]};
      u32 before = 0;
      ROLLED for (u32 j = 0; j < count; j++) before += is_before({room_key[j], room_id[j]}, mine);
      if (before < to.k) write(to, before, bits_of_key(mine.key), mine.id);
    }
    return;
  }
  for (u32 taken = 0; taken < to.k; taken++) {
    Number next = kNothing;
    u32 whose = 0;
    ROLLED for (u32 i = 0; i < kGroup; i++) {
      const Number other = {best_key[i], best_id[i]};
      if (is_before(other, next)) next = other, whose = i;
    }
    sync_group();
    if (me == whose) {
      write(to, taken, bits_of_key(next.key), next.id);
      best = first_after<kLists>(row, next);
      best_key[me] = best.key;
      best_id[me] = best.id;
    }
    sync_group();
  }
}

KERNEL(256)
llmir_topk(const u32 *x, u32 *values, u32 *ids, u32 *weights, u32 columns, u32 k) {
  const u64 r = group_y();
  const Results to = {values + r * k, ids + r * k, weights + r, 1, k, true};
  find_largest<false>({x + r * columns, nullptr, 0, columns}, nullptr, 0, to);
}

KERNEL(256)
llmir_topk_of_parts(const u32 *x, u32 *values, u32 *ids, u32 *weights, u32 columns, u32 part,
                    u32 parts, u32 k) {
  const u64 r = group_y();
  const u32 p = group_x(), begin = p * part;
  const u32 end = begin + part < columns ? begin + part : columns;
  const u64 at = r * k * parts + p;
  const Results to = {values + at, ids + at, weights + r * parts + p, parts, k, false};
  find_largest<false>({x + r * columns, nullptr, begin, end}, nullptr, 0, to);
}

KERNEL(256)
llmir_topk_of_lists(const u32 *lists, const u32 *list_ids, const float *list_weights, u32 *values,
                    u32 *ids, u32 *weights, u32 parts, u32 k) {
  const u64 r = group_y();
  const u64 at = r * k * parts;
  const Results to = {values + r * k, ids + r * k, weights + r, 1, k, true};
  find_largest<true>({lists + at, list_ids + at, 0, k * parts}, list_weights + r * parts, parts, to);
}
