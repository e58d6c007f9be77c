// llm.paged_attention, where chunks have a workgroup each: the parts of a row become its result.
//
//     y[t, h, :] = Σ_c 2^(m_c - m) a_c / (Σ_c 2^(m_c - m) l_c + e^sinks[h])
//
// Bindings (set 0): 0 parts (attention.glsl), 1 positions i32[T], 2 sinks f32[Hq] if HAS_SINKS, else
// any buffer, 3 y f32[T, Hq, D].  Push constants: C.
// Workgroup: at least D / 4 invocations for a row.  Grid: x T, y Hq; where C is 0, nothing is done.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "attention.glsl"

layout(push_constant) uniform Sizes { uint C; };

layout(set = 0, binding = 0) readonly buffer Parts { vec4 parts[]; };
layout(set = 0, binding = 1) readonly buffer Positions { int positions[]; };
layout(set = 0, binding = 2) readonly buffer Sinks { float sinks[]; };
layout(set = 0, binding = 3) buffer Y { vec4 y[]; };

void main() {
    const uint d = gl_LocalInvocationIndex;
    if (C == 0 || d >= D4) return;
    const uint t = gl_WorkGroupID.x, h = gl_WorkGroupID.y, head = t * Q_HEADS + h;
    const Range range = range_of(uint(positions[t]));
    Weight row = Weight(-3.0e38, 0.0);
    vec4 row_a = vec4(0.0);
    for (uint chunk = range.first / CHUNK; chunk <= range.last / CHUNK; ++chunk) {
        const uint part = (head * C + chunk) * PART4;
        merge(row, row_a, Weight(parts[part].x, parts[part].y), parts[part + 1 + d]);
    }
    y[head * D4 + d] = mean(row, row_a, HAS_SINKS != 0 ? sinks[h] : 0.0);
}
