// Gradients of the threshold rule; dw [rows, cols] holds the gradient dWs of the scaled weight:
//   dscale[r] += sum_c dWs[r, c] q[r, c];  dw[r, c] <- dWs[r, c] scale[r],  q = code - 1 (packed, see ternary/mod.rs).
// One workgroup per row; lane l adds columns l, l + 64, ... in order, then a tree over lanes.

struct Params {
    rows: u32,
    cols: u32,
    rule: u32,
}

const LANES: u32 = 64u;

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> codes: array<u32>;
@group(0) @binding(2) var<storage, read> scale: array<f32>;
@group(0) @binding(3) var<storage, read_write> dw: array<f32>;
@group(0) @binding(4) var<storage, read_write> dscale: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = wid.y * groups.x + wid.x;
    if (row >= p.rows) {
        return;
    }
    let words = (p.cols + 15u) / 16u;
    let s = scale[row];
    var total = 0.0;
    for (var c = lane; c < p.cols; c += LANES) {
        let code = (codes[row * words + c / 16u] >> (8u * (c % 4u) + 2u * (c / 4u % 4u))) & 3u;
        let grad = dw[row * p.cols + c];
        total += grad * (f32(code) - 1.0);
        dw[row * p.cols + c] = grad * s;
    }
    let sum = sum_lanes(lane, total);
    if (lane == 0u) {
        dscale[row] += sum;
    }
}
