// KL between the relations of teacher and student, and the log-sum-exps of both (formulas: relation/mod.rs).
//   stats[t, a] = (ln sum_u e^S_s[t, u], ln sum_u e^S_t[t, u]),  kl[t] = sum_a sum_u p_t (ln p_t - ln p_s)
// over the real rows u of the sequence of row t = r / q_len. A row with mask 0 gets zeros; a score that is not finite makes
// its rows' KL and log-sum-exps of the head NaN.
// stats [rows, heads, 2], losses [rows, 4] = (kl, 0, 0, 0).
// One workgroup per row, head after head. Lane l sees the rows l, l + LANES, ... in order with a running maximum (online
// softmax, arXiv 1805.02867); what the lanes have is added as a tree.

@group(0) @binding(4) var<storage, read_write> stats: array<f32>;
@group(0) @binding(5) var<storage, read_write> losses: array<f32>;

// Below every score.
const LOWEST: f32 = -3.0e38;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = wid.y * groups.x + wid.x;
    if (row >= p.rows) {
        return;
    }
    if (mask[row] == 0u) {
        for (var i = lane; i < 2u * p.heads; i += LANES) {
            stats[2u * p.heads * row + i] = 0.0;
        }
        if (lane < 4u) {
            losses[4u * row + lane] = 0.0;
        }
        return;
    }
    let first = row / p.q_len * p.q_len;
    var kl = 0.0;
    var bad = 0.0;
    for (var a = 0u; a < p.heads; a++) {
        var top = vec2<f32>(LOWEST);
        var total = vec2<f32>();
        // sum e^(S_t - top) (S_t - S_s)
        var apart = 0.0;
        var odd = 0.0;
        for (var u = first + lane; u < first + p.q_len; u += LANES) {
            if (mask[u] != 0u) {
                let score = scores(row, u, a);
                odd = max(odd, non_finite(score));
                let new_top = max(top, score);
                let shrink = exp_low(top - new_top);
                let e = exp_low(score - new_top);
                total = fma(total, shrink, e);
                apart = fma(apart, shrink.y, e.y * (score.y - score.x));
                top = new_top;
            }
        }
        let highest = vec2<f32>(max_lanes(lane, top.x), max_lanes(lane, top.y));
        let share = exp_low(top - highest);
        let sums = vec2<f32>(sum_lanes(lane, total.x * share.x), sum_lanes(lane, total.y * share.y));
        let difference = sum_lanes(lane, apart * share.y) / sums.y;
        let odd_head = max_lanes(lane, odd);
        bad = max(bad, odd_head);
        let lse = highest + log(sums);
        kl += difference - (lse.y - lse.x);
        if (lane < 2u) {
            stats[2u * (row * p.heads + a) + lane] = select(lse[lane], nan(), odd_head > 0.0);
        }
    }
    if (lane < 4u) {
        losses[4u * row + lane] = select(0.0, select(kl, nan(), bad > 0.0), lane == 0u);
    }
}
