// Top-K + Other of a row of logits z [vocab]: ids and logprobs [rows, k] of the K largest, falling, lower ids first among
// equals; other [rows, 1 + n_tau]: ln of the summed probability outside the Top-K, at tau = 1 and at every tau:
//   logprob_j = z_j - lse(z);  other_i = max(ln sum_{j not in Top-K} exp(logprob_j / tau_i), -80);  empty tails give -80
// One workgroup per row. Every lane keeps the largest of its own entries l, l + 64, ... that is not taken yet; a round
// takes the best of the lanes, and only the lane that lost it looks for its next. An entry is in the tail exactly if it
// sorts behind the K-th. Sums: lane l in order, then a tree over lanes.

struct Params {
    rows: u32,
    vocab: u32,
    k: u32,
    n_tau: u32,
    tau_0: f32,
    tau_1: f32,
    tau_2: f32,
}

const LANES: u32 = 64u;
const EMPTY: f32 = -80.0;
const NONE: f32 = -3.4e38;

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read_write> ids: array<u32>;
@group(0) @binding(3) var<storage, read_write> logprobs: array<f32>;
@group(0) @binding(4) var<storage, read_write> other: array<f32>;

var<workgroup> values: array<f32, LANES>;
var<workgroup> places: array<u32, LANES>;

// Whether (z, j) sorts behind (value, place): smaller, or equal with a higher id.
fn behind(z: f32, j: u32, value: f32, place: u32) -> bool {
    return z < value || (z == value && j > place);
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = wid.y * groups.x + wid.x;
    if (row >= p.rows) {
        return;
    }
    let base = row * p.vocab;

    // The last entry taken (by this lane while it searches, by the workgroup after the rounds) and its value.
    var value = NONE;
    var place = p.vocab;
    for (var j = lane; j < p.vocab; j += LANES) {
        let z = logits[base + j];
        if (place == p.vocab || z > value) {
            value = z;
            place = j;
        }
    }
    var kept_value = NONE;
    var kept_place = p.vocab;
    var top = NONE;
    for (var rank = 0u; rank < p.k; rank++) {
        values[lane] = value;
        places[lane] = place;
        workgroupBarrier();
        var best = values[0];
        var best_place = places[0];
        for (var l = 1u; l < LANES; l++) {
            if (places[l] < p.vocab && (best_place == p.vocab || behind(best, best_place, values[l], places[l]))) {
                best = values[l];
                best_place = places[l];
            }
        }
        workgroupBarrier();
        if (rank == 0u) {
            top = best;
        }
        // Rank r is written, and read again below, by lane r mod LANES.
        if (rank % LANES == lane) {
            ids[row * p.k + rank] = best_place;
            logprobs[row * p.k + rank] = best;
        }
        kept_value = best;
        kept_place = best_place;
        if (best_place == place) {
            value = NONE;
            place = p.vocab;
            for (var j = lane; j < p.vocab; j += LANES) {
                let z = logits[base + j];
                if (behind(z, j, best, best_place) && (place == p.vocab || z > value)) {
                    value = z;
                    place = j;
                }
            }
        }
    }

    var total = 0.0;
    for (var j = lane; j < p.vocab; j += LANES) {
        total += exp_low(logits[base + j] - top);
    }
    let ln_total = log(sum_lanes(lane, total));
    for (var rank = row * p.k + lane; rank < (row + 1u) * p.k; rank += LANES) {
        logprobs[rank] = (logprobs[rank] - top) - ln_total;
    }
    var taus = array<f32, 4>(1.0, p.tau_0, p.tau_1, p.tau_2);
    for (var i = 0u; i <= p.n_tau; i++) {
        let inverse = 1.0 / taus[i];
        var tail = 0.0;
        for (var j = lane; j < p.vocab; j += LANES) {
            let z = logits[base + j];
            if (behind(z, j, kept_value, kept_place)) {
                tail += exp_low((z - top) * inverse);
            }
        }
        let rest = sum_lanes(lane, tail);
        if (lane == 0u) {
            var result = EMPTY;
            if (rest >= 1e-37) {
                result = max(log(rest) - ln_total * inverse, EMPTY);
            }
            other[row * (1u + p.n_tau) + i] = result;
        }
    }
}
