// db[c] += sum_r dy[r, c], rows in ascending order.  dy [rows, cols], db [cols]. One thread per column.

struct Params {
    rows: u32,
    cols: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> dy: array<f32>;
@group(0) @binding(2) var<storage, read_write> db: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let c = (wid.y * groups.x + wid.x) * 64u + lane;
    if (c >= p.cols) {
        return;
    }
    var total = db[c];
    for (var r = 0u; r < p.rows; r++) {
        total += dy[r * p.cols + c];
    }
    db[c] = total;
}
