// y [rows, cols] = q step; q [rows, words] signed bytes, element 4 i + j in byte j of word i, the step in the first word of
// scales [rows, 2]. One thread per element.

struct Params {
    rows: u32,
    cols: u32,
    words: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> q: array<u32>;
@group(0) @binding(2) var<storage, read> scales: array<vec2<u32>>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = (wid.y * groups.x + wid.x) * 256u + lane;
    if (i >= p.rows * p.cols) {
        return;
    }
    let row = i / p.cols;
    let e = i % p.cols;
    let word = q[row * p.words + e / 4u];
    y[i] = f32(extractBits(bitcast<i32>(word), 8u * (e % 4u), 8u)) * bitcast<f32>(scales[row].x);
}
