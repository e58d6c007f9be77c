// llm.linear: products with a weight of float32 or bfloat16 numbers.
//
//     y[t, n] = Σ_k x[t, k] weight[n, k] + bias[n]
//
// Bindings (set 0): 0 x f32[T, K], 1 weight [N, K] of BITS 32 (f32) or 16 (bf16) as 16-byte units,
// 2 bias f32[N] if HAS_BIAS, else any buffer, 3 y f32[T, N].  Push constants: T.
// Rows of the weight are whole units.  Workgroups and the order of sums: row_products.glsl.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "row_products.glsl"

layout(constant_id = 8) const uint BITS = 16;

layout(set = 0, binding = 0) readonly buffer X { vec4 x[]; };
layout(set = 0, binding = 1) readonly buffer Weights { uvec4 weight[]; };
layout(set = 0, binding = 2) readonly buffer Bias { float bias[]; };
layout(set = 0, binding = 3) writeonly buffer Y { float y[]; };

const uint UNIT4 = 32 / BITS; // vec4s of numbers in a unit

float bias_of(uint n) { return bias[n]; }
void store(uint t, uint n, float value) { y[t * N + n] = value; }

void add_unit(const Tile tile, uint u, const uint tokens) {
    uvec4 words[ROWS];
    [[unroll]] for (uint r = 0; r < ROWS; ++r) words[r] = weight[tile.n[r] * UNITS + u];
    [[unroll]] for (uint i = 0; i < UNIT4; ++i) {
        vec4 x4[TOKENS];
        [[unroll]] for (uint t = 0; t < tokens; ++t) x4[t] = x[tile.x_at[t] + u * UNIT4 + i];
        [[unroll]] for (uint r = 0; r < ROWS; ++r) {
            uvec4 bits = words[r];
            if (BITS == 16) {
                const uvec2 pair = i == 0 ? words[r].xy : words[r].zw;
                bits = uvec4(pair.x << 16, pair.x & 0xFFFF0000u, pair.y << 16, pair.y & 0xFFFF0000u);
            }
            const vec4 w = uintBitsToFloat(bits);
            [[unroll]] for (uint t = 0; t < tokens; ++t) {
                float sum = sums[r * TOKENS + t];
                sum = multiply_add(w.x, x4[t].x, sum);
                sum = multiply_add(w.y, x4[t].y, sum);
                sum = multiply_add(w.z, x4[t].z, sum);
                sums[r * TOKENS + t] = multiply_add(w.w, x4[t].w, sum);
            }
        }
    }
}
