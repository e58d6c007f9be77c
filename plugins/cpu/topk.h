// The k largest numbers of a row, found piece by piece, and Σ e^(x - largest) over all of it.
//
// A list is float[k], falling, and int32_t[k], their columns; of equal numbers the lower column
// comes first.  NaN is never in one.  Places that nobody has yet hold -inf and NOBODY.
// Sixteen columns' weights are two floats: their largest number m, and Σ e^(x - m); NaN where
// there is one.  Which columns are together depends on no grid, and so does no sum of them.
#ifndef LLMIR_TOPK_H
#define LLMIR_TOPK_H
#include "simd.h"

#define NOBODY INT32_MAX
#define LOWEST (-__builtin_inff())

INLINE void begin_top(float *values, int32_t *columns, size_t k) {
  for (size_t i = 0; i < k; i++) {
    values[i] = LOWEST;
    columns[i] = NOBODY;
  }
}

INLINE int is_before(float value, int32_t column, float other, int32_t others) {
  return value > other || (value == other && column < others);
}

// Whether it is one of the k largest so far.
INLINE int insert_top(float *values, int32_t *columns, size_t k, float value, int32_t column) {
  size_t at = k - 1;
  if (!is_before(value, column, values[at], columns[at])) return 0;
  for (; at && is_before(value, column, values[at - 1], columns[at - 1]); at--) {
    values[at] = values[at - 1];
    columns[at] = columns[at - 1];
  }
  values[at] = value;
  columns[at] = column;
  return 1;
}

// Lanes, the first `lanes` of sixteen, that are columns from `first` on.
INLINE void insert_lanes(float *values, int32_t *columns, size_t k, f32x16 x, size_t lanes,
                         size_t first) {
  const i32x16 more = x > splat(values[k - 1]);
  if (columns[k - 1] != NOBODY && !__builtin_reduce_or(more)) return;
  float each[LANES];
  store(each, x);
  for (size_t i = 0; i < lanes; i++)
    insert_top(values, columns, k, each[i], (int32_t)(first + i));
}

// Lanes that are no columns are -inf.
INLINE void weigh_lanes(f32x16 x, float *weights) {
  const float most = largest16(x);
  const f32x16 e = exp16(x - splat(most == LOWEST ? 0 : most));
  weights[0] = most;
  weights[1] = sum16(x != x ? x : e);
}

// Of `units` sixteens, `stride` floats apart.  Each lane adds every sixteenth of them.
INLINE float sum_weights(const float *weights, size_t stride, size_t units, float largest) {
  f32x16 sum = splat(0);
  for (size_t unit = 0; unit < units; unit += LANES) {
    float most[LANES], part[LANES];
    for (size_t i = 0; i < LANES; i++) {
      const int there = unit + i < units;
      most[i] = there ? weights[(unit + i) * stride] : LOWEST;
      part[i] = there ? weights[(unit + i) * stride + 1] : 0;
    }
    sum += load(part) * exp16(load(most) - splat(largest));
  }
  return sum16(sum);
}

#endif
