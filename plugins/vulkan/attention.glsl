// What paged_attention.comp and paged_attention_combine.comp share.
//
// Shape legend: T tokens, S sequences, P page-table columns, N pages of the pool, Hq query heads,
// H KV heads, G = Hq / H, ps tokens a page, D head dim, C chunks of CHUNK positions.
//
// A chunk's part of a row is (m, l, a[D]): its largest score, Σ 2^(s - m), Σ 2^(s - m) V, where
// scores have the unit log₂ e.  Chunks begin at multiples of CHUNK, whatever the row, and their parts
// are merged in ascending order, so that one workgroup for a row and one for a chunk give the same bits.
//
// part[((t Hq + h) C + c) (D + 4)]: m, l, two unused, a.

#extension GL_EXT_control_flow_attributes : require

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint Q_HEADS = 1;
layout(constant_id = 2) const uint D4 = 1; // D / 4
layout(constant_id = 3) const uint WINDOW = 0;
layout(constant_id = 4) const uint HAS_SINKS = 0;

const uint CHUNK = 128;
const uint PART4 = D4 + 1; // vec4s of a part
const float LOG2_E = 1.4426950408889634;

struct Range {
    uint first, last; // the positions that a row attends to, both included
};

Range range_of(uint last) {
    return Range(WINDOW != 0 && last >= WINDOW ? last - WINDOW + 1 : 0, last);
}

// What of a part is the same for all of D.
struct Weight {
    float largest, total;
};

// a b + c d: two products, each rounded, and their sum.
float merged(float a, float b, float c, float d) {
    precise float left = a * b;
    precise float right = c * d;
    precise float sum = left + right;
    return sum;
}

vec4 merged(vec4 a, float b, vec4 c, float d) {
    precise vec4 left = a * b;
    precise vec4 right = c * d;
    precise vec4 sum = left + right;
    return sum;
}

// Add a chunk's part to the row's so far.
void merge(inout Weight row, inout vec4 row_a, Weight chunk, vec4 chunk_a) {
    const float largest = max(row.largest, chunk.largest);
    const float old_share = exp2(row.largest - largest), share = exp2(chunk.largest - largest);
    row_a = merged(row_a, old_share, chunk_a, share);
    row = Weight(largest, merged(row.total, old_share, chunk.total, share));
}

// y of a whole row; the sink's logit counts to the total where there is one.
vec4 mean(Weight row, vec4 row_a, float sink) {
    if (HAS_SINKS == 0) return row_a / row.total;
    precise float logit = sink * LOG2_E;
    const float largest = max(row.largest, logit), share = exp2(row.largest - largest);
    return (row_a * share) / merged(row.total, share, exp2(logit - largest), 1.0);
}
