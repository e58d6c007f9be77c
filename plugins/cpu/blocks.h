// Packed weights: how a tile of sixteen rows is stored, and how 32 columns of it are read.
//
// A packed matrix is its tiles one after the other, a tile its sections, a section a header of
// scales and then its blocks of 32 columns:
//
//   tile      | header | block | block | … | header | block | block | …
//   a header's numbers are vectors of sixteen, one number a row
//   quad j of a block: 64 bytes, byte 4r + i is row r, column 4j + i       (8 quads a block)
//   Fewer bits store quads j and j + 1 (j even) in one vector of 64 bytes, low and high
//   nibbles: 4 vectors a block; then the bits above the fourth:
//   5 bits: 64 bytes, bit j of byte i is the fifth bit of byte i of quad j
//   6 bits: 128 bytes, bits 2j and 2j + 1 of byte i of half h those of byte i of quad 4h + j
//
//   format     section  header                                  bits  w
//   q4_0            32  f16 scale                                  4  scale (u - 8)
//   q4_1            32  f16 scale, f16 min                         4  scale u + min
//   q5_0            32  f16 scale                                  5  scale (u - 16)
//   q5_1            32  f16 scale, f16 min                         5  scale u + min
//   q8_0            32  f16 scale                                  8  scale (u - 128)
//   iq4_nl          32  f16 scale                                  4  scale TABLE[u]
//   q4_k           256  f16 d, f16 dmin, u8 s[8], u8 m[8]          4  d s u - dmin m
//   q5_k           256  f16 d, f16 dmin, u8 s[8], u8 m[8]          5  d s u - dmin m
//   q6_k           256  f16 d, i8 s[16]                            6  d s (u - 32)
//   int8             K  f32 scale                                  8  scale (u - 128)
//   int4_g<g>        g  f32 scale                                  4  scale (u - 8)
//   int4_g<g>_zp     g  f32 scale, f32 min                         4  scale u + min
//   f32, f16         K  none: column after column, one number a row
//   bf16             K  none: pairs of columns, two numbers a row
//
// s and m have a vector for each block of the section, q6_k's s one for each half of a block.
//
// `llmir.formats.packed` writes these.  Every byte of a quad is an unsigned number less than
// 256 whose zero is `zero_of(format)`: w = scale (u - zero) + min.
#ifndef LLMIR_BLOCKS_H
#define LLMIR_BLOCKS_H

#include "simd.h"

#define BLOCK 32
#define BLOCK_BYTES 512  // of a block whose elements are bytes: 8 quads

enum {
  Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, Q4_K, Q5_K, Q6_K, INT8_ROWS,
  INT4_G32, INT4_G64, INT4_G128, INT4_G32_ZP, INT4_G64_ZP, INT4_G128_ZP,
  F32, F16, BF16,
};

// Every format there is, for functions that there are one of for each.
#define QUANTISED_FORMATS(DO)                                                                   \
  DO(q4_0, Q4_0) DO(q4_1, Q4_1) DO(q5_0, Q5_0) DO(q5_1, Q5_1) DO(q8_0, Q8_0) DO(iq4_nl, IQ4_NL) \
  DO(q4_k, Q4_K) DO(q5_k, Q5_K) DO(q6_k, Q6_K) DO(int8, INT8_ROWS)                                   \
  DO(int4_g32, INT4_G32) DO(int4_g64, INT4_G64) DO(int4_g128, INT4_G128)                        \
  DO(int4_g32_zp, INT4_G32_ZP) DO(int4_g64_zp, INT4_G64_ZP) DO(int4_g128_zp, INT4_G128_ZP)
// Of those, the ones whose numbers less their zero are of four bits.
#define FOUR_BIT_FORMATS(DO)                                                                    \
  DO(q4_0, Q4_0) DO(q4_1, Q4_1) DO(q4_k, Q4_K)                                                  \
  DO(int4_g32, INT4_G32) DO(int4_g64, INT4_G64) DO(int4_g128, INT4_G128)                        \
  DO(int4_g32_zp, INT4_G32_ZP) DO(int4_g64_zp, INT4_G64_ZP) DO(int4_g128_zp, INT4_G128_ZP)
#define FLOAT_FORMATS(DO) DO(f32, F32) DO(f16, F16) DO(bf16, BF16)

typedef struct {
  u8x64 quad[8];
  f32x16 scale, min;
  f32x16 second;  // the scale of columns 16 to 31, of formats that are `halved`
} Block;

INLINE int is_float(int format) { return format >= F32; }
INLINE int is_int4(int format) { return format >= INT4_G32 && format <= INT4_G128_ZP; }
INLINE int is_halved(int format) { return format == Q6_K; }
INLINE int has_min(int format) {
  return format == Q4_1 || format == Q5_1 || format == Q4_K || format == Q5_K ||
         (format >= INT4_G32_ZP && format <= INT4_G128_ZP);
}
INLINE int bits_of(int format) {
  switch (format) {
    case Q5_0: case Q5_1: case Q5_K: return 5;
    case Q6_K: return 6;
    case Q8_0: case INT8_ROWS: return 8;
    case F16: case BF16: return 16;
    case F32: return 32;
    default: return 4;
  }
}
INLINE int zero_of(int format) {
  switch (format) {
    case Q4_0: case INT4_G32: case INT4_G64: case INT4_G128: return 8;
    case Q5_0: return 16;
    case Q6_K: return 32;
    case Q8_0: case IQ4_NL: case INT8_ROWS: return 128;
    default: return 0;
  }
}
// Whether no byte of a quad is more than 127.
INLINE int bytes_are_small(int format) { return zero_of(format) != 128; }

// Blocks of a section; of those whose sections are whole rows, more than any row has.
INLINE size_t section_blocks(int format) {
  switch (format) {
    case Q4_K: case Q5_K: case Q6_K: return 8;
    case INT4_G64: case INT4_G64_ZP: return 2;
    case INT4_G128: case INT4_G128_ZP: return 4;
    case INT8_ROWS: case F32: case F16: case BF16: return (size_t)1 << 48;
    default: return 1;
  }
}
INLINE size_t header_bytes(int format) {
  if (is_float(format)) return 0;
  if (format == Q6_K) return 32 + 256;
  if (format == Q4_K || format == Q5_K) return 64 + 256;
  return (is_int4(format) || format == INT8_ROWS ? 64 : 32) * (has_min(format) ? 2 : 1);
}
INLINE size_t element_bytes(int format) { return (size_t)bits_of(format) * BLOCK * LANES / 8; }
INLINE size_t tile_bytes(int format, size_t k) {
  const size_t blocks = k / BLOCK, each = section_blocks(format);
  const size_t sections = blocks < each ? 1 : blocks / each;
  return sections * header_bytes(format) + blocks * element_bytes(format);
}

INLINE u8x64 load_quads(const uint8_t *p) { return *(const u8x64_any *)p; }
INLINE u8x64 low_nibbles(u8x64 v) { return v & 15; }
// A shift of 16-bit lanes: there is none of bytes.
INLINE u8x64 high_nibbles(u8x64 v) { return (u8x64)(((u16x32)v) >> 4) & 15; }
INLINE u8x64 bit_at_16(u8x64 v, int bit) {
  u16x32 wide = (u16x32)v;
  return (u8x64)(bit <= 4 ? wide << (4 - bit) : wide >> (bit - 4)) & 16;
}
INLINE u8x64 two_bits_at_16(u8x64 v, int bit) {
  u16x32 wide = (u16x32)v;
  return (u8x64)(bit <= 4 ? wide << (4 - bit) : wide >> (bit - 4)) & 48;
}
INLINE f32x16 load_u8(const uint8_t *p) {
  return __builtin_convertvector(*(const u8x16_any *)p, f32x16);
}
INLINE f32x16 load_i8(const uint8_t *p) {
  return __builtin_convertvector(*(const i8x16_any *)p, f32x16);
}
INLINE f32x16 load_f32(const uint8_t *p) { return load((const float *)p); }

INLINE u8x64 iq4_nl_values(u8x64 index) {
  // kvalues_iq4nl + 128
  const u8x16 table = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};
#if defined(__AVX512BW__)
  return (u8x64)_mm512_shuffle_epi8(_mm512_broadcast_i32x4((__m128i)table), (__m512i)index);
#elif defined(__AVX2__)
  const __m256i both = _mm256_broadcastsi128_si256((__m128i)table);
  u8x64 y;
  y.lo = (u8x32)_mm256_shuffle_epi8(both, (__m256i)index.lo);
  y.hi = (u8x32)_mm256_shuffle_epi8(both, (__m256i)index.hi);
  return y;
#else
  u8x64 y;
  for (int i = 0; i < 4; i++) {
    uint8x16_t part;
    __builtin_memcpy_inline(&part, (const char *)&index + 16 * i, 16);
    part = vqtbl1q_u8((uint8x16_t)table, part);
    __builtin_memcpy_inline((char *)&y + 16 * i, &part, 16);
  }
  return y;
#endif
}

// Ask for what a stream of weights comes to next.  Every line of it, 6 KB ahead: the hardware
// alone fetched 13 GB/s for a core where this made it 22 (Xeon with AMX, weights in its L3 cache).
INLINE void prefetch_ahead(const uint8_t *block, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 64) prefetch(block + 6144 + i);
}

// The scales of block `at` of a section.
INLINE void read_scales(int format, const uint8_t *header, size_t at, Block *block) {
  if (format == Q4_K || format == Q5_K) {
    block->scale = load_f16(header) * load_u8(header + 64 + 16 * at);
    block->min = -(load_f16(header + 32) * load_u8(header + 192 + 16 * at));
  } else if (format == Q6_K) {
    const f32x16 d = load_f16(header);
    block->scale = d * load_i8(header + 32 + 32 * at);
    block->second = d * load_i8(header + 48 + 32 * at);
  } else if (is_int4(format) || format == INT8_ROWS) {
    block->scale = load_f32(header);
    if (has_min(format)) block->min = load_f32(header + 64);
  } else {
    block->scale = load_f16(header);
    if (has_min(format)) block->min = load_f16(header + 32);
  }
}

// Where the elements of block b of a tile lie; `header` is set to those of its scales.
INLINE const uint8_t *block_at(int format, const uint8_t *tile, size_t b, const uint8_t **header) {
  const size_t each = section_blocks(format), size = element_bytes(format);
  *header = tile + b / each * (header_bytes(format) + each * size);
  return *header + header_bytes(format) + b % each * size;
}

INLINE void prefetch_after(int format, const uint8_t *tile, size_t b) {
  const uint8_t *header, *p = block_at(format, tile, b, &header);
  const size_t before = b % section_blocks(format) ? 0 : header_bytes(format);
  prefetch_ahead(p - before, before + element_bytes(format));
}

// Block b of a tile.
INLINE void read_block(int format, const uint8_t *tile, size_t b, Block *block) {
  const uint8_t *header, *p = block_at(format, tile, b, &header);
  read_scales(format, header, b % section_blocks(format), block);
  if (bits_of(format) == 8) {
    for (int j = 0; j < 8; j++) block->quad[j] = load_quads(p + 64 * j);
    return;
  }
  for (int j = 0; j < 4; j++) {
    u8x64 pair = load_quads(p + 64 * j);
    block->quad[2 * j] = low_nibbles(pair);
    block->quad[2 * j + 1] = high_nibbles(pair);
  }
  if (bits_of(format) == 5) {
    u8x64 bits = load_quads(p + 256);
    for (int j = 0; j < 8; j++) block->quad[j] |= bit_at_16(bits, j);
  }
  if (bits_of(format) == 6)
    for (int j = 0; j < 8; j++)
      block->quad[j] |= two_bits_at_16(load_quads(p + 256 + j / 4 * 64), j % 4 * 2);
  if (format == IQ4_NL)
    for (int j = 0; j < 8; j++) block->quad[j] = iq4_nl_values(block->quad[j]);
}

#endif
