// out[r, c] = table[ids[r], c].  ids [rows], table [vocab, cols], out [rows, cols]. One thread per element of out.

struct Params {
    rows: u32,
    cols: u32,
    vocab: u32,
    // The token of the table's first row, where a part of it is bound (see mod.rs).
    first: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> ids: array<u32>;
@group(0) @binding(2) var<storage, read> table: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = (wid.y * groups.x + wid.x) * 256u + lane;
    if (i < p.rows * p.cols) {
        let row = ids[i / p.cols] - p.first;
        if (row < p.vocab) {
            out[i] = table[row * p.cols + i % p.cols];
        }
    }
}
