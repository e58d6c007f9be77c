// llm.topk: the k largest numbers of each row, and the weight of the whole row beside the largest.
//
//     values[l, :] = the K largest x[l, n], falling;   ids[l, :] = their n, the lower first of equals
//     weights[l]   = Σ_n e^(x[l, n] - values[l, 0])
//     values and weights NaN, ids -1 where the largest is not finite, or NaN is in the row
//
// Shape legend: L rows, N numbers of a row, P parts of it, PART numbers of a part.
//
// Two dispatches: the first finds the K largest of each part, the second, whose row they are, the
// K largest of these.  A row of one part needs the second alone.
//
// Bindings (set 0): 0 x f32[L, N], 1 ids i32[L, N] of these numbers, 2 their parts' weights
// f32[L, LISTS], both only where LISTS > 0, else any buffers; 3 values f32[L, K, P], 4 ids
// i32[L, K, P], 5 weights f32[L, P].  Number i of list p is at i LISTS + p of the second row.
// Workgroup: THREADS invocations.  Grid: x P, y L.  Every part has at least K numbers.
//
// Numbers are compared as integers that rise with them, so that no device's handling of the very
// small matters, and by ids where they are equal: no two are the same.  The K-th of the invocations'
// largest is a bound that at least K numbers reach, and few more; those are ranked by counting.  If
// more reach it than there is room for, the largest are taken one by one.
//
// Order: an invocation adds its numbers in ascending order, then halves are added; it depends on N
// and P alone.
#version 450

layout(local_size_x = 128) in;
layout(constant_id = 1) const uint N = 1;
layout(constant_id = 2) const uint PART = 1;
layout(constant_id = 3) const uint PARTS = 1;
layout(constant_id = 4) const uint LISTS = 0;
layout(constant_id = 5) const uint K = 1; // at most THREADS

const uint THREADS = 128;
const uint ROOM = 1024; // at least the numbers of all lists
const uint LOWEST = 0x007FFFFFu, HIGHEST = 0xFF800000u; // keys of -infinity and infinity
const uint NOT_A_NUMBER = 0x7FC00000u;

layout(set = 0, binding = 0) readonly buffer X { uint x[]; };
layout(set = 0, binding = 1) readonly buffer Ids { uint x_ids[]; };
layout(set = 0, binding = 2) readonly buffer Weights { float list_weights[]; };
layout(set = 0, binding = 3) writeonly buffer Values { uint values[]; };
layout(set = 0, binding = 4) writeonly buffer Found { uint ids[]; };
layout(set = 0, binding = 5) writeonly buffer Sums { uint weights[]; };

struct Number { uint key, id; };
const Number NOTHING = Number(0u, 0xFFFFFFFFu); // after every number

shared uint best_key[THREADS], best_id[THREADS];
shared uint room_key[ROOM], room_id[ROOM];
shared float sums[THREADS];
shared uint num_there, is_bad, most, bound_key, bound_id;

bool is_before(Number a, Number b) {
    return a.key > b.key || (a.key == b.key && a.id < b.id);
}

uint key_of(uint bits) {
    if (bits == 0x80000000u) bits = 0u; // -0 is 0
    return (bits & 0x80000000u) != 0u ? ~bits : bits | 0x80000000u;
}

uint bits_of(uint key) { return (key & 0x80000000u) != 0u ? key & 0x7FFFFFFFu : ~key; }

Number number_at(uint at) {
    const uint row = gl_WorkGroupID.y * N;
    return Number(key_of(x[row + at]), LISTS > 0 ? x_ids[row + at] : at);
}

float weight_beside(uint key, float largest) {
    return key == LOWEST ? 0.0 : exp(uintBitsToFloat(bits_of(key)) - largest);
}

void write(uint rank, uint bits, uint id) {
    const uint at = (gl_WorkGroupID.y * K + rank) * PARTS + gl_WorkGroupID.x;
    values[at] = bits;
    ids[at] = id;
}

void write_weight(uint bits) { weights[gl_WorkGroupID.y * PARTS + gl_WorkGroupID.x] = bits; }

void main() {
    const uint me = gl_LocalInvocationIndex;
    const uint begin = gl_WorkGroupID.x * PART + me;
    const uint end = min(gl_WorkGroupID.x * PART + PART, N);
    if (me == 0) {
        num_there = 0;
        is_bad = 0;
        most = 0;
        bound_key = NOTHING.key;
        bound_id = NOTHING.id;
    }
    barrier();
    Number best = NOTHING;
    uint bad = 0;
    for (uint n = begin; n < end; n += THREADS) {
        const Number found = number_at(n);
        if (found.key >= HIGHEST || found.key < LOWEST) bad = 1;
        if (is_before(found, best)) best = found;
    }
    best_key[me] = best.key;
    best_id[me] = best.id;
    if (bad != 0) is_bad = 1;
    barrier();

    uint rank = 0;
    for (uint i = 0; i < THREADS; ++i) {
        if (is_before(Number(best_key[i], best_id[i]), best)) ++rank;
    }
    if (rank == 0) most = best.key;
    if (rank == K - 1) {
        bound_key = best.key;
        bound_id = best.id;
    }
    barrier();
    if (is_bad != 0 || (PARTS == 1 && most == LOWEST)) {
        for (uint i = me; i < K; i += THREADS) write(i, NOT_A_NUMBER, 0xFFFFFFFFu);
        if (me == 0) write_weight(NOT_A_NUMBER);
        return;
    }

    const Number bound = Number(bound_key, bound_id);
    const float largest = uintBitsToFloat(bits_of(most));
    precise float sum = 0.0;
    for (uint n = begin; n < end; n += THREADS) {
        const Number found = number_at(n);
        if (!is_before(bound, found)) {
            const uint at = atomicAdd(num_there, 1u);
            if (at < ROOM) {
                room_key[at] = found.key;
                room_id[at] = found.id;
            }
        }
        if (LISTS == 0) sum += weight_beside(found.key, largest);
    }
    for (uint p = me; p < LISTS; p += THREADS) {
        sum += list_weights[gl_WorkGroupID.y * LISTS + p] * weight_beside(number_at(p).key, largest);
    }
    sums[me] = sum;
    barrier();
    for (uint other = THREADS / 2; other > 0; other /= 2) {
        if (me < other) {
            precise float both = sums[me] + sums[me + other];
            sums[me] = both;
        }
        barrier();
    }
    if (me == 0) write_weight(floatBitsToUint(sums[0]));

    if (num_there <= ROOM) {
        for (uint i = me; i < num_there; i += THREADS) {
            const Number mine = Number(room_key[i], room_id[i]);
            uint before = 0;
            for (uint j = 0; j < num_there; ++j) {
                if (is_before(Number(room_key[j], room_id[j]), mine)) ++before;
            }
            if (before < K) write(before, bits_of(mine.key), mine.id);
        }
        return;
    }
    for (uint taken = 0; taken < K; ++taken) {
        Number next = NOTHING;
        uint whose = 0;
        for (uint i = 0; i < THREADS; ++i) {
            const Number other = Number(best_key[i], best_id[i]);
            if (is_before(other, next)) {
                next = other;
                whose = i;
            }
        }
        barrier();
        if (me == whose) {
            write(taken, bits_of(next.key), next.id);
            best = NOTHING;
            for (uint n = begin; n < end; n += THREADS) {
                const Number found = number_at(n);
                if (is_before(next, found) && is_before(found, best)) best = found;
            }
            best_key[me] = best.key;
            best_id[me] = best.id;
        }
        barrier();
    }
}
