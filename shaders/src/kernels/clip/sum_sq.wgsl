// partials[offset + b] = sum of x[i]^2 over block b of 16,384 elements; NaN if any element is NaN or Inf.
// One workgroup per block: lane l adds elements l, l + 256, ... in order, then a tree over lanes.

struct Params {
    n: u32,
    offset: u32,
}

const LANES: u32 = 256u;
const BLOCK: u32 = 16384u;

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> partials: array<f32>;

// Arithmetic may assume that there is no NaN (WGSL 15.7.2), so non-finite input is found by its exponent bits.
var<workgroup> bad: atomic<u32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let block = wid.y * groups.x + wid.x;
    let first = block * BLOCK;
    if (first >= p.n) {
        return;
    }
    let end = min(p.n, first + BLOCK);
    var total = 0.0;
    var non_finite = 0u;
    for (var i = first + lane; i < end; i += LANES) {
        let value = x[i];
        if ((bitcast<u32>(value) & 0x7f800000u) == 0x7f800000u) {
            non_finite = 1u;
        } else {
            total += value * value;
        }
    }
    atomicOr(&bad, non_finite);
    let sum = sum_lanes(lane, total);
    if (lane == 0u) {
        // A variable, because WGSL rejects a constant expression that is NaN.
        var nan = 0x7fc00000u;
        partials[p.offset + block] = select(sum, bitcast<f32>(nan), atomicLoad(&bad) != 0u);
    }
}
