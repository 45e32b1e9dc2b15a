// stats[r, h, 1] = sum_d do[r, h, d] o[r, h, d].  do_, o [rows, heads head_dim], stats [rows, heads, 2].
// One thread per (row, head), flat index r heads + h; d in ascending order.

// Params is Shape of mod.rs.
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> do_: array<f32>;
@group(0) @binding(2) var<storage, read> o: array<f32>;
@group(0) @binding(3) var<storage, read_write> stats: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = (wid.y * groups.x + wid.x) * 64u + lane;
    if (i >= p.rows * p.heads) {
        return;
    }
    var total = 0.0;
    for (var d = 0u; d < p.head_dim; d++) {
        total = fma(do_[i * p.head_dim + d], o[i * p.head_dim + d], total);
    }
    stats[2u * i + 1u] = total;
}
