// Rows of a packed table:  y[t, k] = w[ids[t], k]
//
// ABI (see rows.cu); 256 threads:
//
//   llmir_embedding(ids i32[T], table i8[…], out y f32[T, K], K, section)     grid (T)
//
// Compiled with FORMAT, see packed.h.
#include "group_sum.h"
#include "packed.h"

#if !defined(FORMAT)
#error "FORMAT must be given"
#endif

KERNEL(256)
llmir_embedding(const u32 *ids, const u8 *table, float *y, u32 columns, u32 section) {
  const Matrix w = {table, columns / kBlock, section};
  const u32 row = ids[group_x()];
  for (u32 k = thread_id(); k < columns; k += kGroup)
    y[(u64)group_x() * columns + k] = weight_at<FORMAT>(w, row, k);
}
