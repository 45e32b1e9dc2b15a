// dg[c] += sum_r dy[r, c] x[r, c] rstd[r], rows in ascending order.  x, dy [rows, cols], rstd [rows], dg [cols].
// One thread per column, so that neighbouring threads read neighbouring columns.

struct Params {
    rows: u32,
    cols: u32,
    eps: f32,
    add: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> rstd: array<f32>;
@group(0) @binding(3) var<storage, read> dy: array<f32>;
@group(0) @binding(4) var<storage, read_write> dg: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let c = (wid.y * groups.x + wid.x) * 64u + lane;
    if (c >= p.cols) {
        return;
    }
    var total = dg[c];
    for (var r = 0u; r < p.rows; r++) {
        total += dy[r * p.cols + c] * x[r * p.cols + c] * rstd[r];
    }
    dg[c] = total;
}
