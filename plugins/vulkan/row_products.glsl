// What quantized_matmul.comp and linear.comp share: who computes which sums, and in what order.
//
//     y[t, n] = Σ_k x[t, k] w[n, k] + bias[n]
//
// Shape legend: T tokens, N rows of the weight, K columns; a unit is 16 bytes of a row of the weight.
//
// Workgroup: LANES × GROUPS invocations in a line.  LANES of them share a row: lane i has its units
// i, i + LANES, …  A group of LANES computes ROWS rows, so that a number of x that was read serves
// ROWS times, for a tile of TOKENS tokens.  Grid: x ⌈N / (GROUPS ROWS)⌉, y ⌈T / TOKENS⌉.
//
// Order: a lane adds its units in ascending order, and the lanes' sums are added in ascending order.
// Both depend on K and LANES alone, every sum is `precise` and every product and sum an fma, so that
// a row has the same bits whatever T is and wherever in a tile it stands.
//
// Memory: nothing past N or T is read, but a row that is not there is one that is, not stored.
// Shared: LANES GROUPS ROWS TOKENS floats.  No subgroup operation, no 8- or 16-bit storage.

#extension GL_EXT_control_flow_attributes : require

layout(local_size_x_id = 0) in; // LANES * GROUPS
layout(constant_id = 1) const uint LANES = 8;
layout(constant_id = 2) const uint GROUPS = 8;
layout(constant_id = 3) const uint ROWS = 4;
layout(constant_id = 4) const uint N = 1;
layout(constant_id = 5) const uint UNITS = 1; // 16-byte units in a row of the weight
layout(constant_id = 6) const uint K4 = 4;    // K / 4
layout(constant_id = 7) const uint HAS_BIAS = 0;

const uint TOKENS = 4;

layout(push_constant) uniform Sizes { uint T; };

shared float parts[LANES * GROUPS * ROWS * TOKENS];

// Where x[t, 0] is, in vec4s, and the rows of the weight.
struct Tile {
    uint x_at[TOKENS];
    uint n[ROWS];
};

// The sums of this lane.  (glslang makes a `precise` global a variable of one function.)
float sums[ROWS * TOKENS];

// a b + c, one rounding or two, but the same wherever it stands.
float multiply_add(float a, float b, float c) {
    precise float sum = fma(a, b, c);
    return sum;
}

// Add unit u of each row, for the first `tokens` of the tile: sums[r * TOKENS + t].
void add_unit(const Tile tile, uint u, const uint tokens);

// y[t, n] and bias[n].
void store(uint t, uint n, float value);
float bias_of(uint n);

void compute(const uint tokens) {
    const uint lane = gl_LocalInvocationIndex % LANES, group = gl_LocalInvocationIndex / LANES;
    const uint first_n = (gl_WorkGroupID.x * GROUPS + group) * ROWS;
    const uint first_t = gl_WorkGroupID.y * TOKENS;
    Tile tile;
    [[unroll]] for (uint t = 0; t < tokens; ++t) {
        tile.x_at[t] = min(first_t + t, T - 1) * K4;
    }
    [[unroll]] for (uint r = 0; r < ROWS; ++r) {
        tile.n[r] = min(first_n + r, N - 1);
        [[unroll]] for (uint t = 0; t < tokens; ++t) sums[r * TOKENS + t] = 0.0;
    }
    for (uint u = lane; u < UNITS; u += LANES) add_unit(tile, u, tokens);

    [[unroll]] for (uint r = 0; r < ROWS; ++r) {
        [[unroll]] for (uint t = 0; t < tokens; ++t) {
            parts[((group * ROWS + r) * tokens + t) * LANES + lane] = sums[r * TOKENS + t];
        }
    }
    barrier();
    for (uint i = gl_LocalInvocationIndex; i < GROUPS * ROWS * tokens; i += LANES * GROUPS) {
        precise float sum = 0.0;
        [[unroll]] for (uint from = 0; from < LANES; ++from) sum += parts[i * LANES + from];
        const uint n = gl_WorkGroupID.x * GROUPS * ROWS + i / tokens, t = first_t + i % tokens;
        if (n < N && t < T) {
            if (HAS_BIAS != 0) sum += bias_of(n);
            store(t, n, sum);
        }
    }
}

void main() {
    // One token, or the last of many, does without the arithmetic of those that are not there.
    if (T - gl_WorkGroupID.y * TOKENS == 1) {
        compute(1);
    } else {
        compute(TOKENS);
    }
}
