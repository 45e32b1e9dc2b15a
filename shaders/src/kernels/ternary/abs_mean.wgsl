// mean[0] = sum_r partial_sums[r] / (rows cols).  One workgroup; lane l adds rows l, l + 256, ... in order, then a tree.

struct Params {
    rows: u32,
    cols: u32,
    rule: u32,
}

const LANES: u32 = 256u;

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> partial_sums: array<f32>;
@group(0) @binding(2) var<storage, read_write> mean: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) lane: u32) {
    var total = 0.0;
    for (var r = lane; r < p.rows; r += LANES) {
        total += partial_sums[r];
    }
    let sum = sum_lanes(lane, total);
    if (lane == 0u) {
        mean[0] = divide(sum, f32(p.rows * p.cols));
    }
}
