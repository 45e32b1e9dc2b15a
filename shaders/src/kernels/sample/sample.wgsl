// ids[r] = a token drawn from the nucleus of softmax(logits[r] / temperature) (definition: sample/mod.rs).
// With e_j = exp((z_j - max) / temperature): theta = the largest float with sum of {e_j >= theta} >= top_p sum e, found by
// bisection over its bits (positive floats sort as integers); then the first j with running sum over the nucleus > u total.
// logits [rows, vocab], u [rows], ids [rows]. One workgroup per row. Every lane owns one run of ceil(vocab / LANES) tokens:
// the running sum goes over runs, then inside the one run that crosses the goal.

struct Params {
    rows: u32,
    vocab: u32,
    temperature: f32,
    top_p: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read> u: array<f32>;
@group(0) @binding(3) var<storage, read_write> ids: array<u32>;

var<workgroup> run_sums: array<f32, LANES>;
var<workgroup> last_member: atomic<u32>;

fn e(at: u32, top: f32) -> f32 {
    return exp(max((logits[at] - top) / p.temperature, -100.0));
}

// Sum of the entries of one run at or above the threshold, ascending.
fn mass(base: u32, first: u32, end: u32, top: f32, threshold: f32) -> f32 {
    var total = 0.0;
    for (var j = first; j < end; j++) {
        let x = e(base + j, top);
        total += select(0.0, x, x >= threshold);
    }
    return total;
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = wid.y * groups.x + wid.x;
    if (row >= p.rows) {
        return;
    }
    let base = row * p.vocab;
    let run = (p.vocab + LANES - 1u) / LANES;
    let first = min(lane * run, p.vocab);
    let end = min(first + run, p.vocab);
    var largest = -3.4e38;
    for (var j = first; j < end; j++) {
        largest = max(largest, logits[base + j]);
    }
    let top = max_lanes(lane, largest);

    var low = 0u;
    if (p.top_p < 1.0) {
        let wanted = p.top_p * sum_lanes(lane, mass(base, first, end, top, 0.0));
        var high = 0x3f800000u;
        // All lanes see the same sums; a fixed number of steps keeps the barriers in uniform control flow.
        for (var step = 0u; step < 32u; step++) {
            let middle = low + (high - low + 1u) / 2u;
            if (sum_lanes(lane, mass(base, first, end, top, bitcast<f32>(middle))) >= wanted) {
                low = middle;
            } else if (low < high) {
                high = middle - 1u;
            }
        }
    }
    let threshold = bitcast<f32>(low);

    run_sums[lane] = mass(base, first, end, top, threshold);
    for (var j = end; j > first; j--) {
        if (e(base + j - 1u, top) >= threshold) {
            atomicMax(&last_member, j - 1u);
            break;
        }
    }
    workgroupBarrier();
    if (lane == 0u) {
        var total = 0.0;
        for (var l = 0u; l < LANES; l++) {
            total += run_sums[l];
        }
        let goal = u[row] * total;
        var chosen = atomicLoad(&last_member);
        var before = 0.0;
        var l = 0u;
        for (; l < LANES; l++) {
            if (before + run_sums[l] > goal) {
                break;
            }
            before += run_sums[l];
        }
        let run_end = min((l + 1u) * run, p.vocab);
        for (var j = l * run; j < run_end; j++) {
            let x = e(base + j, top);
            if (x >= threshold) {
                before += x;
                if (before > goal) {
                    chosen = j;
                    break;
                }
            }
        }
        ids[row] = chosen;
    }
}
