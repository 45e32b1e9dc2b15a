// out[r, c] = (code[r, c] - 1) scale[r].  codes [rows, ceil(cols / 16)] (packed, see ternary/mod.rs), scale [rows],
// out [rows, cols]. One thread per element.

struct Params {
    rows: u32,
    cols: u32,
    rule: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> codes: array<u32>;
@group(0) @binding(2) var<storage, read> scale: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = (wid.y * groups.x + wid.x) * 256u + lane;
    if (i >= p.rows * p.cols) {
        return;
    }
    let row = i / p.cols;
    let c = i % p.cols;
    let code = (codes[row * ((p.cols + 15u) / 16u) + c / 16u] >> (8u * (c % 4u) + 2u * (c / 4u % 4u))) & 3u;
    out[i] = (f32(code) - 1.0) * scale[row];
}
