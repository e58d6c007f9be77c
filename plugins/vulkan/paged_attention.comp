// llm.paged_attention: the rows of a ragged batch over pages, a softmax in float32.
//
//     s[j] = cap(scale q[t, h, :] · K(token_seq[t], j, h / G))
//     y[t, h, :] = Σ_j e^s[j] V(token_seq[t], j, h / G) / (Σ_j e^s[j] + e^sinks[h])
//     over   max(0, positions[t] - window + 1) <= j <= positions[t],   cap as in the op's file
//
// Bindings (set 0): 0 q f32[T, Hq, D], 1 kv[N, 2, H, ps, D] of FORMAT, 2 page_table i32[S, P],
// 3 token_seq i32[T], 4 positions i32[T], 5 sinks f32[Hq] if HAS_SINKS, else any buffer, 6 parts
// (attention.glsl) if C > 0, 7 y f32[T, Hq, D] if C = 0.  Push constants: P, C.
// FORMAT: 0 f32, 1 bf16, 2 int8 (rows of D bytes and a float32 scale), 3 fp8 (e4m3fn).
//
// Workgroup: local_size_x invocations for the G query heads of one KV head of one token, of one
// chunk.  Grid: x T, y H, z C, or 1 where C is 0: then a workgroup does all chunks of its row.
// First each invocation has positions, then SLICES × D4 have four elements of V each, every SLICES-th
// position.  Shared: the queries, and G (CHUNK or 4 SLICES D4) floats.
//
// Nothing is read of positions outside the row's own; unwritten slots may hold NaN.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "attention.glsl"

layout(constant_id = 5) const uint GROUP = 1; // G
layout(constant_id = 6) const uint PAGE_SIZE = 16;
layout(constant_id = 7) const uint FORMAT = 0;
layout(constant_id = 8) const uint SLICES = 1; // a power of two, at most 8
layout(constant_id = 9) const float SCALE = 1.0;
layout(constant_id = 10) const float SOFTCAP = 0.0;
layout(constant_id = 11) const uint SCRATCH = 128; // G times the larger of CHUNK and 4 SLICES D4

layout(push_constant) uniform Sizes { uint P, C; };

layout(set = 0, binding = 0) readonly buffer Q { vec4 q[]; };
layout(set = 0, binding = 1) readonly buffer KvFloats { vec4 kv_floats[]; };
layout(set = 0, binding = 1) readonly buffer KvPairs { uvec2 kv_pairs[]; };
layout(set = 0, binding = 1) readonly buffer KvWords { uint kv_words[]; };
layout(set = 0, binding = 2) readonly buffer PageTable { int page_table[]; };
layout(set = 0, binding = 3) readonly buffer TokenSeq { int token_seq[]; };
layout(set = 0, binding = 4) readonly buffer Positions { int positions[]; };
layout(set = 0, binding = 5) readonly buffer Sinks { float sinks[]; };
layout(set = 0, binding = 6) writeonly buffer Parts { vec4 parts[]; };
layout(set = 0, binding = 7) writeonly buffer Y { vec4 y[]; };

const uint HEADS = Q_HEADS / GROUP;
const uint SEGMENTS = 8; // in which a chunk's largest score and sum are found
const uint SEGMENT = CHUNK / SEGMENTS;
const float LOWEST = -3.0e38;

shared vec4 queries[GROUP * D4];
shared float scratch[SCRATCH]; // [G, CHUNK] 2^(s - m), then [SLICES, G, D] sums
shared float segments[GROUP * SEGMENTS];

// float8_e4m3fn, as the top bits of a float32: exponents differ by 120, and none is denormal there.
float from_fp8(uint byte) {
    const uint size = byte & 127u;
    const float normal = uintBitsToFloat((size << 20) + (120u << 23));
    const float value = size == 127u ? uintBitsToFloat(0x7FC00000u) :
        size < 8u ? float(size) * 0.001953125 : normal;
    return (byte & 128u) != 0 ? -value : value;
}

// Elements 4 i to 4 i + 3 of a row of pages; of int8 before the scale.
vec4 elements(uint row, uint i) {
    if (FORMAT == 0) return kv_floats[row * D4 + i];
    if (FORMAT == 1) {
        const uvec2 w = kv_pairs[row * D4 + i];
        return uintBitsToFloat(uvec4(w.x << 16, w.x & 0xFFFF0000u, w.y << 16, w.y & 0xFFFF0000u));
    }
    if (FORMAT == 2) {
        const int w = int(kv_words[row * (D4 + 1) + i]);
        return vec4(w << 24 >> 24, w << 16 >> 24, w << 8 >> 24, w >> 24);
    }
    const uint w = kv_words[row * D4 + i];
    return vec4(from_fp8(w & 255u), from_fp8((w >> 8) & 255u), from_fp8((w >> 16) & 255u),
                from_fp8(w >> 24));
}

float scale_of(uint row) {
    return FORMAT == 2 ? uintBitsToFloat(kv_words[row * (D4 + 1) + D4]) : 1.0;
}

// The row of offset 0 of the page with position j; K: which 0, V: 1.
uint page_row(uint sequence, uint j, uint which) {
    const uint page = uint(page_table[sequence * P + j / PAGE_SIZE]);
    return ((page * 2 + which) * HEADS + gl_WorkGroupID.y) * PAGE_SIZE;
}

float multiply_add(float a, float b, float c) {
    precise float sum = fma(a, b, c);
    return sum;
}

// scratch[g, j - start] = the scores of the positions that count, LOWEST of others.
void find_scores(uint sequence, uint start, Range range) {
    for (uint i = gl_LocalInvocationIndex; i < CHUNK; i += gl_WorkGroupSize.x) {
        const uint j = start + i;
        float scores[GROUP];
        [[unroll]] for (uint g = 0; g < GROUP; ++g) scores[g] = 0.0;
        const bool counts = j >= range.first && j <= range.last;
        if (counts) {
            const uint row = page_row(sequence, j, 0) + j % PAGE_SIZE;
            [[unroll]] for (uint d = 0; d < D4; ++d) {
                const vec4 k = elements(row, d);
                [[unroll]] for (uint g = 0; g < GROUP; ++g) {
                    const vec4 q4 = queries[g * D4 + d];
                    float score = multiply_add(q4.x, k.x, scores[g]);
                    score = multiply_add(q4.y, k.y, score);
                    score = multiply_add(q4.z, k.z, score);
                    scores[g] = multiply_add(q4.w, k.w, score);
                }
            }
            const float k_scale = scale_of(row);
            [[unroll]] for (uint g = 0; g < GROUP; ++g) {
                precise float score = scores[g] * k_scale * SCALE;
                if (SOFTCAP != 0.0) score = SOFTCAP * tanh(score / SOFTCAP);
                score *= LOG2_E;
                scores[g] = score;
            }
        }
        [[unroll]] for (uint g = 0; g < GROUP; ++g) scratch[g * CHUNK + i] = counts ? scores[g] : LOWEST;
    }
    barrier();
}

// The largest of scratch[g, :] or its sum, for every g; all invocations get it.
void reduce(const bool is_sum, out float found[GROUP]) {
    for (uint i = gl_LocalInvocationIndex; i < GROUP * SEGMENTS; i += gl_WorkGroupSize.x) {
        precise float value = scratch[i * SEGMENT];
        for (uint n = 1; n < SEGMENT; ++n) {
            const float next = scratch[i * SEGMENT + n];
            value = is_sum ? value + next : max(value, next);
        }
        segments[i] = value;
    }
    barrier();
    [[unroll]] for (uint g = 0; g < GROUP; ++g) {
        precise float value = segments[g * SEGMENTS];
        [[unroll]] for (uint n = 1; n < SEGMENTS; ++n) {
            const float next = segments[g * SEGMENTS + n];
            value = is_sum ? value + next : max(value, next);
        }
        found[g] = value;
    }
    barrier();
}

// Four elements of Σ_j scratch[g, j] V[j] of a chunk, for invocations below D4.
void find_values(uint sequence, uint start, Range range, out vec4 values[GROUP]) {
    const uint d = gl_LocalInvocationIndex % D4, slice = gl_LocalInvocationIndex / D4;
    [[unroll]] for (uint g = 0; g < GROUP; ++g) values[g] = vec4(0.0);
    if (slice < SLICES) {
        const uint first = max(start, range.first), last = min(start + CHUNK - 1, range.last);
        for (uint page = first / PAGE_SIZE * PAGE_SIZE; page <= last; page += PAGE_SIZE) {
            const uint rows = page_row(sequence, page, 1);
            for (uint offset = slice; offset < PAGE_SIZE; offset += SLICES) {
                const uint j = page + offset;
                if (j < first || j > last) continue;
                vec4 v = elements(rows + offset, d);
                if (FORMAT == 2) {
                    precise vec4 scaled = v * scale_of(rows + offset);
                    v = scaled;
                }
                [[unroll]] for (uint g = 0; g < GROUP; ++g) {
                    const float p = scratch[g * CHUNK + j - start];
                    values[g] = vec4(multiply_add(p, v.x, values[g].x),
                                     multiply_add(p, v.y, values[g].y),
                                     multiply_add(p, v.z, values[g].z),
                                     multiply_add(p, v.w, values[g].w));
                }
            }
        }
    }
    if (SLICES == 1) return;
    barrier();
    [[unroll]] for (uint g = 0; g < GROUP; ++g) {
        [[unroll]] for (uint e = 0; e < 4; ++e) {
            if (slice < SLICES) scratch[((slice * GROUP + g) * D4 + d) * 4 + e] = values[g][e];
        }
    }
    barrier();
    if (slice == 0) {
        [[unroll]] for (uint g = 0; g < GROUP; ++g) {
            [[unroll]] for (uint from = 1; from < SLICES; ++from) {
                [[unroll]] for (uint e = 0; e < 4; ++e) {
                    precise float sum = values[g][e] + scratch[((from * GROUP + g) * D4 + d) * 4 + e];
                    values[g][e] = sum;
                }
            }
        }
    }
}

void main() {
    const uint t = gl_WorkGroupID.x, first_head = gl_WorkGroupID.y * GROUP;
    const uint sequence = uint(token_seq[t]), d = gl_LocalInvocationIndex;
    const Range range = range_of(uint(positions[t]));
    uint chunk = range.first / CHUNK, end = range.last / CHUNK + 1;
    if (C > 0) {
        if (gl_WorkGroupID.z < chunk || gl_WorkGroupID.z >= end) return;
        chunk = gl_WorkGroupID.z;
        end = chunk + 1;
    }
    for (uint i = gl_LocalInvocationIndex; i < GROUP * D4; i += gl_WorkGroupSize.x) {
        queries[i] = q[(t * Q_HEADS + first_head) * D4 + i];
    }
    barrier();
    Weight rows[GROUP];
    vec4 rows_a[GROUP];
    [[unroll]] for (uint g = 0; g < GROUP; ++g) {
        rows[g] = Weight(LOWEST, 0.0);
        rows_a[g] = vec4(0.0);
    }
    for (; chunk < end; ++chunk) {
        const uint start = chunk * CHUNK;
        float largest[GROUP], total[GROUP];
        vec4 values[GROUP];
        find_scores(sequence, start, range);
        reduce(false, largest);
        for (uint i = gl_LocalInvocationIndex; i < CHUNK; i += gl_WorkGroupSize.x) {
            const bool counts = start + i >= range.first && start + i <= range.last;
            [[unroll]] for (uint g = 0; g < GROUP; ++g) {
                const uint at = g * CHUNK + i;
                scratch[at] = counts ? exp2(scratch[at] - largest[g]) : 0.0;
            }
        }
        barrier();
        reduce(true, total);
        find_values(sequence, start, range, values);
        [[unroll]] for (uint g = 0; g < GROUP; ++g) {
            merge(rows[g], rows_a[g], Weight(largest[g], total[g]), values[g]);
        }
        barrier();
    }
    if (d >= D4) return;
    [[unroll]] for (uint g = 0; g < GROUP; ++g) {
        const uint head = t * Q_HEADS + first_head + g;
        if (C > 0) {
            const uint part = (head * C + end - 1) * PART4;
            if (d == 0) parts[part] = vec4(rows[g].largest, rows[g].total, 0.0, 0.0);
            parts[part + 1 + d] = rows_a[g];
        } else {
            y[head * D4 + d] = mean(rows[g], rows_a[g], HAS_SINKS != 0 ? sinks[first_head + g] : 0.0);
        }
    }
}
