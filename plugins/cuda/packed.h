// Packed weights as operands of the matrix unit: tiles of sixteen rows, blocks of 32 columns.
//
// The layout is plugins/cpu/blocks.h's (one archive of weights serves both); of its formats those
// below.  FORMAT, a macro, is one of them: each is compiled into a file of its own.
//
// A block is two products of 16 × 16 by 16 × 8.  Which of the block's columns is which of a
// product's is free, as long as weights and activations agree: they are taken so that a lane's
// weights are 8 bytes in a row, and a warp reads 256 bytes on end at a time.  Lane 4 g + i has
// rows 2 g and 2 g + 1 of the tile (as rows g and g + 8 of the product), and of product h
//   4 bits   columns 8 i + 4 h,      and the 3 after it
//   8 bits   columns 16 h + 4 i,     and the 3 after it
//   bf16     columns 16 h + 2 i,     the one after it, and both plus 8
#ifndef LLMIR_PACKED_H
#define LLMIR_PACKED_H

#include "numbers.h"

enum Format { Q4_0, Q4_1, Q8_0, INT8_ROWS, INT4, INT4_ZP, BF16 };

constexpr u32 kBlock = 32;     // columns
constexpr u32 kTileRows = 16;
constexpr u32 kSliceBlocks = 8;

constexpr u32 bits_of_format(Format f) {
  return f == BF16 ? 16 : f == Q8_0 || f == INT8_ROWS ? 8 : 4;
}
constexpr bool is_float(Format f) { return f == BF16; }
constexpr bool has_min(Format f) { return f == Q4_1 || f == INT4_ZP; }
constexpr bool has_f16_scales(Format f) { return f == Q4_0 || f == Q4_1 || f == Q8_0; }
constexpr u32 zero_of(Format f) {
  return f == Q4_0 || f == INT4 ? 8 : bits_of_format(f) == 8 ? 128 : 0;
}
constexpr u32 block_bytes(Format f) { return bits_of_format(f) * kBlock * kTileRows / 8; }
constexpr u32 header_bytes(Format f) {
  return is_float(f) ? 0 : (has_f16_scales(f) ? 2 : 4) * kTileRows * (has_min(f) ? 2 : 1);
}

// A packed matrix.  `section`: the blocks that share a header.
struct Matrix {
  const u8 *data;
  u32 blocks, section;
};

template <Format F>
INLINE u64 tile_bytes(const Matrix &w) {
  return (u64)(w.blocks / w.section) * header_bytes(F) + (u64)w.blocks * block_bytes(F);
}

// What a lane reads of a block, as it is stored.
template <Format F>
struct Stored {
  u32x2 elements[bits_of_format(F) / 4];
  u32x2 scales, mins;
};

template <Format F>
INLINE Stored<F> load_block(const Matrix &w, u32 tile, u32 block, u32 lane) {
  const u32 g = lane / 4, i = lane % 4;
  const u8 *at = w.data + tile * tile_bytes<F>(w);
  const u32 section = block / w.section;
  const u8 *header = at + (u64)section * (header_bytes(F) + w.section * block_bytes(F));
  const u8 *p = header + header_bytes(F) + (block - section * w.section) * block_bytes(F);
  Stored<F> s;
  for (u32 j = 0; j < bits_of_format(F) / 4; j++)
    s.elements[j] = *(const u32x2 *)(p + 64 * (4 * j + i) + 8 * g);
  if constexpr (has_f16_scales(F)) {
    s.scales.x = *(const u32 *)(header + 4 * g);
    if (has_min(F)) s.mins.x = *(const u32 *)(header + 32 + 4 * g);
  } else if constexpr (!is_float(F)) {
    s.scales = *(const u32x2 *)(header + 8 * g);
    if (has_min(F)) s.mins = *(const u32x2 *)(header + 64 + 8 * g);
  }
  return s;
}

// Two numbers of which a lane has one for each of its rows.
template <Format F>
INLINE f32x2 row_numbers(u32x2 stored) {
  if (has_f16_scales(F)) return f32x2{from_f16(stored.x & 0xffff), from_f16(stored.x >> 16)};
  return f32x2{float_of(stored.x), float_of(stored.y)};
}

// Product h's operand: integers less their zero, exact in bf16, or the bf16 weights.
template <Format F>
INLINE void operand(const Stored<F> &s, u32 h, u32 (&a)[4]) {
  if constexpr (is_float(F)) {
    a[0] = s.elements[2 * h].x;
    a[1] = s.elements[2 * h].y;
    a[2] = s.elements[2 * h + 1].x;
    a[3] = s.elements[2 * h + 1].y;
  } else if constexpr (bits_of_format(F) == 4) {
    // 0x43nn is 128 + nn in bf16.
    constexpr u32 less = (0xc300 | zero_of(F)) * 0x10001;
    for (u32 row = 0; row < 2; row++) {
      const u32 nibbles = (row ? s.elements[0].y : s.elements[0].x) >> 4 * h & 0x0f0f0f0f;
      a[row] = add_bf16x2(pick_bytes(nibbles, 0x43434343, 0x4140), less);
      a[row + 2] = add_bf16x2(pick_bytes(nibbles, 0x43434343, 0x4342), less);
    }
  } else {
    // 0x4b0000nn is 2²³ + nn in float32; of so small an integer the upper half is its bf16.
    constexpr float less = 8388608.0f + zero_of(F);
    for (u32 row = 0; row < 2; row++) {
      const u32 bytes = row ? s.elements[h].y : s.elements[h].x;
      float x[4];
      UNROLL for (u32 j = 0; j < 4; j++)
        x[j] = float_of(pick_bytes(bytes, 0x4b000000, 0x7540 + j)) - less;
      a[row] = pick_bytes(bits_of(x[0]), bits_of(x[1]), 0x7632);
      a[row + 2] = pick_bytes(bits_of(x[2]), bits_of(x[3]), 0x7632);
    }
  }
}

// Product h's other operand: a lane's columns, of a row of activations that begins at `row`.
template <Format F>
INLINE void activations(const u16 *row, u32 h, u32 lane, u32 (&b)[2]) {
  const u32 i = lane % 4;
  if constexpr (is_float(F)) {
    b[0] = *(const u32 *)(row + 16 * h + 2 * i);
    b[1] = *(const u32 *)(row + 16 * h + 2 * i + 8);
  } else {
    const u32 at = bits_of_format(F) == 4 ? 8 * i + 4 * h : 16 * h + 4 * i;
    const u32x2 both = *(const u32x2 *)(row + at);
    b[0] = both.x;
    b[1] = both.y;
  }
}

// One weight, w[row of the tile, column].
template <Format F>
INLINE float weight_at(const Matrix &w, u32 row, u32 column) {
  const u32 tile = row / kTileRows, r = row % kTileRows, block = column / kBlock;
  const u32 section = block / w.section, j = column % kBlock;
  const u8 *header = w.data + tile * tile_bytes<F>(w) +
                     (u64)section * (header_bytes(F) + w.section * block_bytes(F));
  const u8 *p = header + header_bytes(F) + (block - section * w.section) * block_bytes(F);
  if constexpr (is_float(F)) return from_bf16(*(const u16 *)(p + j / 2 * 64 + 4 * r + j % 2 * 2));
  u32 u = p[j / 4 / (bits_of_format(F) == 4 ? 2 : 1) * 64 + 4 * r + j % 4];
  if (bits_of_format(F) == 4) u = u >> j / 4 % 2 * 4 & 15;
  const u32 bytes = has_f16_scales(F) ? 2 : 4;
  auto number = [&](const u8 *at) {
    return bytes == 2 ? from_f16(*(const u16 *)at) : float_of(*(const u32 *)at);
  };
  const float x = number(header + bytes * r) * (float)((int)u - (int)zero_of(F));
  return has_min(F) ? x + number(header + bytes * (kTileRows + r)) : x;
}

#endif
