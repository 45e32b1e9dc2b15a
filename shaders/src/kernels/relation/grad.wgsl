// Gradient of sum_t w_t kl[t] (formulas: relation/mod.rs):
//   dx[t, a] += 1/sqrt(d_s) sum_u [w_t (p_s(t, u) - p_t(t, u)) + w_u (p_s(u, t) - p_t(u, t))] x_s[u, a]
// with p(t, u) = e^(S[t, u] - lse[t]), over the real rows u of the sequence. A row with mask 0 keeps its gradient. A
// log-sum-exp that is not finite makes the gradient of its head in its sequence NaN.
// stats [rows, heads, 2] = (lse_s, lse_t), meta_ [rows, 4] = (_, w, _, _), dx [rows, width_s].
// One workgroup per (row, head). Rows go by in blocks of LANES: lane i finds the factor of row i, then lane d adds the block
// up for the floats d, d + LANES, ... of the head; rows in ascending order.

@group(0) @binding(4) var<storage, read> stats: array<f32>;
@group(0) @binding(5) var<storage, read> meta_: array<f32>;
@group(0) @binding(6) var<storage, read_write> dx: array<f32>;

var<workgroup> factors: array<f32, LANES>;

// p_s - p_t.
fn difference(score: vec2<f32>, lse: vec2<f32>) -> f32 {
    let p = exp_low(score - lse);
    return p.x - p.y;
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = wid.y * groups.x + wid.x;
    if (i >= p.rows * p.heads) {
        return;
    }
    let row = i / p.heads;
    let a = i % p.heads;
    if (mask[row] == 0u) {
        return;
    }
    let first = row / p.q_len * p.q_len;
    let d_s = p.width_s / p.heads;
    let at = row * p.width_s + a * d_s;
    let lse = vec2<f32>(stats[2u * i], stats[2u * i + 1u]);
    let weight = meta_[4u * row + 1u];
    var odd = 0.0;
    for (var j0 = 0u; j0 < p.q_len; j0 += LANES) {
        workgroupBarrier();
        let u = first + j0 + lane;
        var factor = 0.0;
        if (j0 + lane < p.q_len && mask[u] != 0u) {
            let s = 2u * (u * p.heads + a);
            let lse_u = vec2<f32>(stats[s], stats[s + 1u]);
            odd = max(odd, non_finite(lse_u));
            let score = scores(row, u, a);
            factor = (weight * difference(score, lse) + meta_[4u * u + 1u] * difference(score, lse_u)) * p.scale_s;
        }
        factors[lane] = factor;
        workgroupBarrier();
        let count = min(LANES, p.q_len - j0);
        for (var d = lane; d < d_s; d += LANES) {
            var sum = 0.0;
            for (var b = 0u; b < count; b++) {
                // What is not real may hold anything.
                if (factors[b] != 0.0) {
                    sum = fma(factors[b], x_s[(first + j0 + b) * p.width_s + a * d_s + d], sum);
                }
            }
            dx[at + d] += sum;
        }
    }
    if (max_lanes(lane, odd) > 0.0) {
        for (var d = lane; d < d_s; d += LANES) {
            dx[at + d] = nan();
        }
    }
}
