// partial_sums[r] = sum_c |w[r, c]|.  w [rows, cols]. One workgroup per row; lane l adds columns l, l + 64, ... in order,
// then a tree over lanes.

struct Params {
    rows: u32,
    cols: u32,
    rule: u32,
}

const LANES: u32 = 64u;

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> w: array<f32>;
@group(0) @binding(2) var<storage, read_write> partial_sums: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = wid.y * groups.x + wid.x;
    if (row >= p.rows) {
        return;
    }
    var total = 0.0;
    for (var c = lane; c < p.cols; c += LANES) {
        total += abs(w[row * p.cols + c]);
    }
    let sum = sum_lanes(lane, total);
    if (lane == 0u) {
        partial_sums[row] = sum;
    }
}
