// llm.quantized_matmul: products with a weight of 4 or 8 bits a number, read as it is stored.
//
//     w[n, k] = (q[n, k] - zero_point) scales[n, k / g] + mins[n, k / g]
//     y[t, n] = Σ_k x[t, k] w[n, k] + bias[n]
//
// computed group by group, as scale Σ q x + (min - zero_point scale) Σ x.
//
// Bindings (set 0): 0 x f32[T, K], 1 quants u8[N, K / g, g BITS / 8] as 16-byte units, 2 scales
// f32[N, K / g], 3 mins f32[N, K / g] if HAS_MINS, 4 bias f32[N] if HAS_BIAS (both may be any buffer
// if not), 5 y f32[T, N].  Push constants: T.
// Quants of 4 bits: byte j of a group has element j low and element j + g/2 high.  Of 8 bits: signed.
// Rows of the weight are whole units, and so are groups, or two are one.
// Workgroups and the order of sums: row_products.glsl.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "row_products.glsl"

layout(constant_id = 8) const uint BITS = 4;
layout(constant_id = 9) const uint GROUP_SIZE = 32;
layout(constant_id = 10) const uint HAS_MINS = 0;
layout(constant_id = 11) const int ZERO_POINT = 0;

layout(set = 0, binding = 0) readonly buffer X { vec4 x[]; };
layout(set = 0, binding = 1) readonly buffer Quants { uvec4 quants[]; };
layout(set = 0, binding = 2) readonly buffer Scales { float scales[]; };
layout(set = 0, binding = 3) readonly buffer Mins { float mins[]; };
layout(set = 0, binding = 4) readonly buffer Bias { float bias[]; };
layout(set = 0, binding = 5) writeonly buffer Y { float y[]; };

const uint GROUP_WORDS = GROUP_SIZE * BITS / 32;
const uint GROUPS_OF_ROW = K4 * 4 / GROUP_SIZE;
const uint UNIT_WORDS = GROUP_WORDS < 4 ? GROUP_WORDS : 4; // of one group
const bool HAS_OFFSET = HAS_MINS != 0 || ZERO_POINT != 0;

float bias_of(uint n) { return bias[n]; }
void store(uint t, uint n, float value) { y[t * N + n] = value; }

vec4 low_nibbles(uint w) {
    return vec4(w & 15u, (w >> 8) & 15u, (w >> 16) & 15u, (w >> 24) & 15u);
}

vec4 signed_bytes(uint w) {
    const int i = int(w);
    return vec4(i << 24 >> 24, i << 16 >> 24, i << 8 >> 24, i >> 24);
}

// The sums of q x and of x, of one group's part in a unit.
float products[ROWS * TOKENS];
float totals[TOKENS];

void add(const uint r, const uint t, const vec4 q, const vec4 x4) {
    float sum = products[r * TOKENS + t];
    sum = multiply_add(q.x, x4.x, sum);
    sum = multiply_add(q.y, x4.y, sum);
    sum = multiply_add(q.z, x4.z, sum);
    products[r * TOKENS + t] = multiply_add(q.w, x4.w, sum);
}

void add_total(const uint t, const vec4 x4) {
    precise float total = totals[t] + ((x4.x + x4.y) + (x4.z + x4.w));
    totals[t] = total;
}

void add_unit(const Tile tile, uint u, const uint tokens) {
    uvec4 words[ROWS];
    [[unroll]] for (uint r = 0; r < ROWS; ++r) words[r] = quants[tile.n[r] * UNITS + u];
    [[unroll]] for (uint first = 0; first < 4; first += UNIT_WORDS) {
        const uint g = (u * 4 + first) / GROUP_WORDS, word = (u * 4 + first) % GROUP_WORDS;
        [[unroll]] for (uint t = 0; t < tokens; ++t) {
            totals[t] = 0.0;
            [[unroll]] for (uint r = 0; r < ROWS; ++r) products[r * TOKENS + t] = 0.0;
        }
        [[unroll]] for (uint c = 0; c < UNIT_WORDS; ++c) {
            vec4 low[TOKENS], high[TOKENS];
            // In vec4s of x: a word has 4 elements of 8 bits, or 4 and 4 of 4 bits.
            const uint at = g * (GROUP_SIZE / 4) + word + c;
            [[unroll]] for (uint t = 0; t < tokens; ++t) {
                low[t] = x[tile.x_at[t] + at];
                if (HAS_OFFSET) add_total(t, low[t]);
                if (BITS == 4) {
                    high[t] = x[tile.x_at[t] + at + GROUP_SIZE / 8];
                    if (HAS_OFFSET) add_total(t, high[t]);
                }
            }
            [[unroll]] for (uint r = 0; r < ROWS; ++r) {
                const uint w = words[r][first + c];
                if (BITS == 4) {
                    const vec4 q_low = low_nibbles(w), q_high = low_nibbles(w >> 4);
                    [[unroll]] for (uint t = 0; t < tokens; ++t) {
                        add(r, t, q_low, low[t]);
                        add(r, t, q_high, high[t]);
                    }
                } else {
                    const vec4 q = signed_bytes(w);
                    [[unroll]] for (uint t = 0; t < tokens; ++t) add(r, t, q, low[t]);
                }
            }
        }
        [[unroll]] for (uint r = 0; r < ROWS; ++r) {
            const uint place = tile.n[r] * GROUPS_OF_ROW + g;
            const float scale = scales[place];
            float offset = 0.0;
            if (HAS_MINS != 0) offset = mins[place];
            if (ZERO_POINT != 0) offset = multiply_add(-float(ZERO_POINT), scale, offset);
            [[unroll]] for (uint t = 0; t < tokens; ++t) {
                const uint at = r * TOKENS + t;
                sums[at] = multiply_add(scale, products[at], sums[at]);
                if (HAS_OFFSET) sums[at] = multiply_add(offset, totals[t], sums[at]);
            }
        }
    }
}
