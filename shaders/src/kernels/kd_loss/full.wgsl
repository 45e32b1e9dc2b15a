// Distillation loss of a chunk's rows against a teacher's whole distribution, and its gradient in place (formulas:
// kd_loss/full.rs). logits, teacher [rows, vocab]; meta_ [_, 4] = (_, w_kd, w_ce, w_format), labels [_], losses [_, 4] of the
// whole batch, in which the chunk begins at row `first`. One workgroup per row; sums: lane l adds l, l + LANES, ... in order,
// then a tree. A row with a NaN or an infinite logit on either side gets NaN losses and a NaN gradient, found by exponent bits.

struct Params {
    rows: u32,
    first: u32,
    vocab: u32,
    taught: u32,
    by_teacher: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> logits: array<f32>;
@group(0) @binding(2) var<storage, read> teacher: array<f32>;
@group(0) @binding(3) var<storage, read> meta_: array<f32>;
@group(0) @binding(4) var<storage, read> labels: array<i32>;
@group(0) @binding(5) var<storage, read> hyper: array<f32>;
@group(0) @binding(6) var<storage, read_write> losses: array<f32>;

var<workgroup> bad: atomic<u32>;
var<workgroup> any_bad: u32;

fn non_finite(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7f800000u) == 0x7f800000u;
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = wid.y * groups.x + wid.x;
    if (row >= p.rows) {
        return;
    }
    let base = row * p.vocab;
    let at = p.first + row;
    let label = labels[at];
    if (label < 0) {
        for (var j = lane; j < p.vocab; j += LANES) {
            logits[base + j] = 0.0;
        }
        if (lane < 4u) {
            losses[4u * at + lane] = 0.0;
        }
        return;
    }
    var largest = -3.4e38;
    var largest_t = -3.4e38;
    var wrong = false;
    for (var j = lane; j < p.vocab; j += LANES) {
        let z = logits[base + j];
        wrong = wrong || non_finite(z);
        largest = max(largest, z);
        if (p.taught == 1u) {
            let t = teacher[base + j];
            wrong = wrong || non_finite(t);
            largest_t = max(largest_t, t);
        }
    }
    let z_label = logits[base + u32(label)];
    atomicOr(&bad, select(0u, 1u, wrong));
    let top = max_lanes(lane, largest);
    let top_t = max_lanes(lane, largest_t);
    if (lane == 0u) {
        any_bad = atomicLoad(&bad);
    }
    if (workgroupUniformLoad(&any_bad) != 0u) {
        // A variable, because WGSL rejects a constant expression that is NaN.
        var bits = 0x7fc00000u;
        let nan = bitcast<f32>(bits);
        for (var j = lane; j < p.vocab; j += LANES) {
            logits[base + j] = nan;
        }
        if (lane < 4u) {
            losses[4u * at + lane] = nan;
        }
        return;
    }
    // Every lane has read the label's logit before an entry becomes a gradient.
    storageBarrier();

    let inv_tau = hyper[HYPER_INV_TAU];
    let w_ce = meta_[4u * at + 2u] + meta_[4u * at + 3u];
    var e_mine = 0.0;
    var e_tau_mine = 0.0;
    var t_mine = 0.0;
    var t_tau_mine = 0.0;
    var apart_mine = 0.0;
    for (var j = lane; j < p.vocab; j += LANES) {
        let z = logits[base + j] - top;
        e_mine += exp_low(z);
        if (p.taught == 1u) {
            let t = teacher[base + j] - top_t;
            let share = exp_low(t * inv_tau);
            e_tau_mine += exp_low(z * inv_tau);
            t_mine += exp_low(t);
            t_tau_mine += share;
            apart_mine += share * (t - z);
        }
    }
    let total = sum_lanes(lane, e_mine);
    let ce = log(total) - (z_label - top);
    if (p.taught == 0u) {
        for (var j = lane; j < p.vocab; j += LANES) {
            let hit = select(0.0, w_ce, j == u32(label));
            logits[base + j] = w_ce / total * exp_low(logits[base + j] - top) - hit;
        }
        if (lane < 4u) {
            losses[4u * at + lane] = select(0.0, ce, lane == 1u);
        }
        return;
    }
    let tau_total = sum_lanes(lane, e_tau_mine);
    let ce_t = log(sum_lanes(lane, t_mine)) - (teacher[base + u32(label)] - top_t);
    let total_t = sum_lanes(lane, t_tau_mine);
    let kl = sum_lanes(lane, apart_mine) * inv_tau / total_t + (log(tau_total) - log(total_t));
    let by = select(1.0, ce_t, p.by_teacher == 1u);
    let w_kd = meta_[4u * at + 1u] * by;
    for (var j = lane; j < p.vocab; j += LANES) {
        let z = logits[base + j] - top;
        let share = exp_low((teacher[base + j] - top_t) * inv_tau);
        let hit = select(0.0, w_ce, j == u32(label));
        let apart = w_kd * inv_tau * (exp_low(z * inv_tau) / tau_total - share / total_t);
        logits[base + j] = w_ce / total * exp_low(z) - hit + apart;
    }
    if (lane == 0u) {
        losses[4u * at] = kl * by;
        losses[4u * at + 1u] = ce;
        losses[4u * at + 2u] = kl;
        losses[4u * at + 3u] = ce_t;
    }
}
