// Distillation loss of one row of logits z [vocab] and its gradient in place (formulas: kd_loss/mod.rs).
//
// Teacher buckets t = softmax over the present targets (logprobs / tau) and meta.other; student p = softmax(z / tau).
//   kl = sum_i t_i (ln t_i - ln p_i) + t_o (ln t_o - ln s_o),  s_o = sum of p outside the Top-K, ln s_o >= -80
//   ce = ln sum_j e^z_j - z_label
//   dz_j = w_kd / tau (p_j - t_j) in the Top-K, w_kd / tau p_j (1 - t_o / s_o) outside, + (w_ce + w_format)(softmax(z)_j - [j = label])
// logits [rows, vocab], topk_ids, targets, kept [rows, k], meta_ [rows, 4] = (other, w_kd, w_ce, w_format), labels [rows],
// losses [rows, 4] = (kl, ce, 0, 0). One workgroup per row; sums: lane l adds l, l + LANES, ... in order, then a tree.
//
// The Top-K logits are taken out of the row into `kept` (and replaced by a huge negative value) before the sums, so that
// the rest is summed directly, without a membership test or a difference of large numbers, and written back as gradients
// at the end. Bucket b belongs to lane b mod LANES, which alone touches its words: any number of buckets is looped over.
// A row with a NaN or an infinite logit gets NaN losses and a NaN gradient, found by exponent bits.

struct Params {
    rows: u32,
    vocab: u32,
    k: u32,
}

const FLOOR: f32 = -80.0;
const GONE: f32 = -1.0e30;

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> logits: array<f32>;
@group(0) @binding(2) var<storage, read> topk_ids: array<i32>;
@group(0) @binding(3) var<storage, read> targets: array<f32>;
@group(0) @binding(4) var<storage, read> meta_: array<f32>;
@group(0) @binding(5) var<storage, read> labels: array<i32>;
@group(0) @binding(6) var<storage, read> hyper: array<f32>;
@group(0) @binding(7) var<storage, read_write> losses: array<f32>;
@group(0) @binding(8) var<storage, read_write> kept: array<f32>;

var<workgroup> bad: atomic<u32>;
var<workgroup> any_bad: u32;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = wid.y * groups.x + wid.x;
    if (row >= p.rows) {
        return;
    }
    let base = row * p.vocab;
    let label = labels[row];
    if (label < 0) {
        for (var j = lane; j < p.vocab; j += LANES) {
            logits[base + j] = 0.0;
        }
        if (lane < 4u) {
            losses[4u * row + lane] = 0.0;
        }
        return;
    }
    let inv_tau = hyper[HYPER_INV_TAU];
    let w_kd = meta_[4u * row + 1u];
    let w_ce = meta_[4u * row + 2u] + meta_[4u * row + 3u];
    let buckets = select(p.k, 0u, w_kd == 0.0);

    var largest = -3.4e38;
    var non_finite = 0u;
    for (var j = lane; j < p.vocab; j += LANES) {
        let z = logits[base + j];
        if ((bitcast<u32>(z) & 0x7f800000u) == 0x7f800000u) {
            non_finite = 1u;
        } else {
            largest = max(largest, z);
        }
    }
    let z_label = logits[base + u32(label)];
    atomicOr(&bad, non_finite);
    let top = max_lanes(lane, largest);
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
            losses[4u * row + lane] = select(0.0, nan, lane < 2u);
        }
        return;
    }

    // Every lane has read the row and the label's logit before an entry is taken out.
    storageBarrier();
    let first = row * p.k;
    var largest_target = GONE;
    for (var b = first + lane; b < first + buckets; b += LANES) {
        let id = topk_ids[b];
        if (id >= 0) {
            kept[b] = logits[base + u32(id)];
            logits[base + u32(id)] = GONE;
            largest_target = max(largest_target, targets[b]);
        }
    }
    let other_log = meta_[4u * row];
    let target_top = max(max_lanes(lane, largest_target), other_log);
    var e_mine = 0.0;
    var e_mine_tau = 0.0;
    var target_mine = 0.0;
    for (var b = first + lane; b < first + buckets; b += LANES) {
        if (topk_ids[b] >= 0) {
            let shifted = kept[b] - top;
            e_mine += exp_low(shifted);
            e_mine_tau += exp_low(shifted * inv_tau);
            target_mine += exp_low(targets[b] - target_top);
        }
    }
    let target_sum = sum_lanes(lane, target_mine) + exp_low(other_log - target_top);
    let target_other = exp_low(other_log - target_top) / target_sum;

    storageBarrier();
    var rest_1 = 0.0;
    var rest_tau = 0.0;
    for (var j = lane; j < p.vocab; j += LANES) {
        let shifted = logits[base + j] - top;
        rest_1 += exp_low(shifted);
        rest_tau += exp_low(shifted * inv_tau);
    }
    let total = sum_lanes(lane, rest_1 + e_mine);
    let rest = max(sum_lanes(lane, rest_tau), 1e-37);
    let total_tau = sum_lanes(lane, e_mine_tau) + rest;

    var kl_mine = 0.0;
    for (var b = first + lane; b < first + buckets; b += LANES) {
        let target_b = exp_low(targets[b] - target_top) / target_sum;
        if (topk_ids[b] >= 0 && target_b > 0.0) {
            kl_mine += target_b * (log(target_b) - ((kept[b] - top) * inv_tau - log(total_tau)));
        }
    }
    let kl_top = sum_lanes(lane, kl_mine);
    if (lane == 0u) {
        var kl = kl_top;
        if (buckets == 0u) {
            kl = 0.0;
        } else if (target_other > 0.0) {
            kl += target_other * (log(target_other) - max(log(rest) - log(total_tau), FLOOR));
        }
        losses[4u * row] = kl;
        losses[4u * row + 1u] = log(total) - (z_label - top);
        losses[4u * row + 2u] = 0.0;
        losses[4u * row + 3u] = 0.0;
    }

    let scale = select(w_kd * inv_tau, 0.0, buckets == 0u);
    let ce_factor = w_ce / total;
    let rest_factor = scale * (1.0 / total_tau - target_other / rest);
    for (var j = lane; j < p.vocab; j += LANES) {
        let shifted = logits[base + j] - top;
        let hit = select(0.0, w_ce, j == u32(label));
        logits[base + j] = ce_factor * exp_low(shifted) - hit + rest_factor * exp_low(shifted * inv_tau);
    }
    storageBarrier();
    for (var b = first + lane; b < first + buckets; b += LANES) {
        let id = topk_ids[b];
        if (id >= 0) {
            let shifted = kept[b] - top;
            let hit = select(0.0, w_ce, id == label);
            let apart = exp_low(shifted * inv_tau) / total_tau - exp_low(targets[b] - target_top) / target_sum;
            logits[base + u32(id)] = ce_factor * exp_low(shifted) - hit + scale * apart;
        }
    }
}
