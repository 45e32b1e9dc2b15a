// dx[r, c] (+)= rstd dy g - x rstd^3 / cols * sum_c dy g x.  x, dy, dx [rows, cols], g [cols], rstd [rows].
// One workgroup per row; the sum as in forward.wgsl.

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
@group(0) @binding(3) var<storage, read> rstd: array<f32>;
@group(0) @binding(4) var<storage, read> dy: array<f32>;
@group(0) @binding(5) var<storage, read_write> dx: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = wid.y * groups.x + wid.x;
    if (row >= p.rows) {
        return;
    }
    let base = row * p.cols;
    let r = rstd[row];
    var total = 0.0;
    for (var c = lane; c < p.cols; c += LANES) {
        total += dy[base + c] * g[c] * x[base + c];
    }
    let k = sum_lanes(lane, total) * r * r * r / f32(p.cols);
    for (var c = lane; c < p.cols; c += LANES) {
        let d = r * dy[base + c] * g[c] - x[base + c] * k;
        dx[base + c] = select(d, dx[base + c] + d, p.add == 1u);
    }
}
