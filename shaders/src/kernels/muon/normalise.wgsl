// x = u / (sqrt(sum of partials) + eps).  u, x [n], partials as `sum_sq` leaves them (a few).
// One thread per element; every thread adds the partials in order.

struct Params {
    n: u32,
    partials: u32,
    eps: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> u: array<f32>;
@group(0) @binding(2) var<storage, read> partials: array<f32>;
@group(0) @binding(3) var<storage, read_write> x: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = (wid.y * groups.x + wid.x) * 256u + lane;
    if (i >= p.n) {
        return;
    }
    var total = 0.0;
    for (var b = 0u; b < p.partials; b++) {
        total += partials[b];
    }
    x[i] = u[i] / (sqrt(total) + p.eps);
}
