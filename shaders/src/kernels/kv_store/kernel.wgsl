// cache[r / q_len, pos[r], c] = x[r, c].  x [rows, cols], pos [rows], cache [sequences, kv_len, cols].
// One thread per element of x.

@group(0) @binding(3) var<storage, read_write> cache: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = (wid.y * groups.x + wid.x) * 256u + lane;
    if (i >= p.rows * p.cols) {
        return;
    }
    let r = i / p.cols;
    cache[place(r) * p.cols + i % p.cols] = x[i + p.first * p.cols];
}
