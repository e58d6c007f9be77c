// Numbers: bf16, what a float32 is made of in bf16, and the gates of feed-forward layers.
#ifndef LLMIR_NUMBERS_H
#define LLMIR_NUMBERS_H

#include "device.h"

INLINE float from_bf16(u32 bits) { return float_of(bits << 16); }

// To nearest, ties to even; a NaN stays one.
INLINE u32 to_bf16(float x) {
  const u32 bits = bits_of(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return (bits >> 16) | 0x40;
  return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

INLINE u32 pair_bf16(float low, float high) { return to_bf16(low) | to_bf16(high) << 16; }

// The first piece of x in bf16; `x` keeps what is left.  Three pieces are all of a float32 but
// for what lies below bf16's smallest number.
INLINE u32 take_piece(float &x) {
  const u32 piece = to_bf16(x);
  const float left = x - from_bf16(piece);
  x = (bits_of(x) & 0x7f800000) == 0x7f800000 ? 0.0f : left;  // inf and NaN are one piece
  return piece;
}

INLINE float from_f16(u32 bits) { return (float)__builtin_bit_cast(_Float16, (u16)bits); }

constexpr float kLog2E = 1.4426950408889634f;

// 1 / (1 + e^-x)
INLINE float sigmoid(float x) { return 1.0f / (1.0f + exp2_fast(-x * kLog2E)); }

enum Gate { kNoGate = 0, kSilu = 1, kGeluTanh = 2 };

// gate sigmoid(gate), or gate sigmoid(a gate + b gate³): see dialect_ext/gated_mul.py.
INLINE float gated(u32 kind, float gate, float up) {
  float slope = gate;
  if (kind == kGeluTanh) {
    const float a = 1.5957691216057308f, b = 0.07135481627159953f;
    slope = gate * (gate * gate * b + a);
  }
  return gate * sigmoid(slope) * up;
}

#endif
