// out [4] += (sum w_kd kl, sum w_ce ce, sum w_format ce, rows with a non-finite loss).
// losses [rows, 4] = (kl, ce, 0, 0), meta_ [rows, 4] = (other, w_kd, w_ce, w_format).
// One workgroup; lane l adds rows l, l + 64, ... in order, then a tree. A non-finite loss makes the sums that it enters NaN.

struct Params {
    rows: u32,
    vocab: u32,
    k: u32,
}

const LANES: u32 = 64u;

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> losses: array<f32>;
@group(0) @binding(2) var<storage, read> meta_: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

// Bit 0: some kl is not finite, bit 1: some ce.
var<workgroup> bad: atomic<u32>;

fn non_finite(value: f32) -> bool {
    return (bitcast<u32>(value) & 0x7f800000u) == 0x7f800000u;
}

@compute @workgroup_size(64)
fn main(@builtin(local_invocation_index) lane: u32) {
    var sums = vec3<f32>();
    var count = 0.0;
    var seen = 0u;
    for (var r = lane; r < p.rows; r += LANES) {
        let kl = losses[4u * r];
        let ce = losses[4u * r + 1u];
        let bad_kl = non_finite(kl);
        let bad_ce = non_finite(ce);
        seen |= select(0u, 1u, bad_kl) | select(0u, 2u, bad_ce);
        count += select(0.0, 1.0, bad_kl || bad_ce);
        if (!bad_kl) {
            sums.x = fma(meta_[4u * r + 1u], kl, sums.x);
        }
        if (!bad_ce) {
            sums.y = fma(meta_[4u * r + 2u], ce, sums.y);
            sums.z = fma(meta_[4u * r + 3u], ce, sums.z);
        }
    }
    atomicOr(&bad, seen);
    let kl = sum_lanes(lane, sums.x);
    let ce = sum_lanes(lane, sums.y);
    let format = sum_lanes(lane, sums.z);
    let rows = sum_lanes(lane, count);
    if (lane == 0u) {
        let flags = atomicLoad(&bad);
        var bits = 0x7fc00000u;
        let nan = bitcast<f32>(bits);
        out[0] = select(out[0] + kl, nan, (flags & 1u) != 0u);
        out[1] = select(out[1] + ce, nan, (flags & 2u) != 0u);
        out[2] = select(out[2] + format, nan, (flags & 2u) != 0u);
        out[3] += rows;
    }
}
