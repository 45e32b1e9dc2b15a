// rstd[r] = 1 / sqrt(mean_c x[r, c]^2 + eps);  y[r, c] = x[r, c] rstd[r] g[c].  x, y [rows, cols], g [cols], rstd [rows].
// One workgroup per row; lane l adds columns l, l + 64, ... in order, then a tree over lanes.

struct Params {
    rows: u32,
    cols: u32,
    eps: f32,
    add: u32,
}

const LANES: u32 = 64u;

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> g: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;
@group(0) @binding(4) var<storage, read_write> rstd: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = wid.y * groups.x + wid.x;
    if (row >= p.rows) {
        return;
    }
    let base = row * p.cols;
    var total = 0.0;
    for (var c = lane; c < p.cols; c += LANES) {
        total += x[base + c] * x[base + c];
    }
    let r = 1.0 / sqrt(sum_lanes(lane, total) / f32(p.cols) + p.eps);
    if (lane == 0u) {
        rstd[row] = r;
    }
    for (var c = lane; c < p.cols; c += LANES) {
        y[base + c] = x[base + c] * r * g[c];
    }
}
