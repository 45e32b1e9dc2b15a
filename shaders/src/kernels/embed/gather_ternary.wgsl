// out[r, c] = table[ids[r], c] of a table of packed ternary rows.  ids [rows], codes [vocab, ceil(cols / 16)], out [rows, cols].
// One thread per word of codes.

struct Params {
    rows: u32,
    cols: u32,
    vocab: u32,
    // The token of the table's first row, where a part of it is bound (see mod.rs).
    first: u32,
    row: u32,
    // Scales of a row: 1, or one for every 64 weights.
    groups: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> ids: array<u32>;
@group(0) @binding(2) var<storage, read> codes: array<u32>;
@group(0) @binding(3) var<storage, read> scale: array<u32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = (wid.y * groups.x + wid.x) * 256u + lane;
    let words = (p.cols + 15u) / 16u;
    if (i >= p.rows * words) {
        return;
    }
    let token = ids[i / words] - p.first;
    if (token >= p.vocab) {
        return;
    }
    let start = 16u * (i % words);
    for (var e = start; e < min(start + 16u, p.cols); e++) {
        out[i / words * p.cols + e] = weight(token, token * words, e);
    }
}
