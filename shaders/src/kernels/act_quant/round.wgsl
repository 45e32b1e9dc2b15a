// Activations rounded as by blocks.wgsl, as values again: y = q step.  x, y [rows, cols]. One thread per block of 64.

@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = (wid.y * groups.x + wid.x) * 64u + lane;
    let blocks = (p.cols + 63u) / 64u;
    if (i >= p.rows * blocks) {
        return;
    }
    let base = i / blocks * p.cols;
    let start = 64u * (i % blocks);
    let step = block_step(base, start);
    for (var c = start; c < min(start + 64u, p.cols); c++) {
        y[base + c] = f32(block_code(x[base + c], step)) * step;
    }
}
