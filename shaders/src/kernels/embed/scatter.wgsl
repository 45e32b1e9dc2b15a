// dtable[v, c] += sum of dx[r, c] over the rows r that hold token v, in ascending order of r.
// order[starts[v] .. starts[v + 1]] are those rows: no float atomics, one fixed order.
// starts [vocab + 1], order [rows], dx [rows, cols], dtable [vocab, cols]. One thread per element of dtable.

struct Params {
    rows: u32,
    cols: u32,
    vocab: u32,
    // The token of the table's first row, where a part of it is bound (see mod.rs).
    first: u32,
    // The batch's row that dx begins with, where a part of it is bound.
    row: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> starts: array<u32>;
@group(0) @binding(2) var<storage, read> order: array<u32>;
@group(0) @binding(3) var<storage, read> dx: array<f32>;
@group(0) @binding(4) var<storage, read_write> dtable: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = (wid.y * groups.x + wid.x) * 256u + lane;
    if (i >= p.vocab * p.cols) {
        return;
    }
    let v = p.first + i / p.cols;
    let c = i % p.cols;
    let end = starts[v + 1u];
    var total = dtable[i];
    for (var o = starts[v]; o < end; o++) {
        let r = order[o];
        if (r >= p.row && r < p.row + p.rows) {
            total += dx[(r - p.row) * p.cols + c];
        }
    }
    dtable[i] = total;
}
