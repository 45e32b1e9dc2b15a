// p_out = (a I + b g / rho + c g2 / rho^2) / sqrt(rho), all [n, n], with rho = sqrt(sqrt(sum of partials)) + 1e-6, 1 where there
// are none: the partials are those of g2. One thread per element; every thread adds the partials in order.

struct Params {
    n: u32,
    a: f32,
    b: f32,
    c: f32,
    partials: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> g: array<f32>;
@group(0) @binding(2) var<storage, read> g2: array<f32>;
@group(0) @binding(3) var<storage, read> partials: array<f32>;
@group(0) @binding(4) var<storage, read_write> p_out: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = (wid.y * groups.x + wid.x) * 256u + lane;
    if (i >= p.n * p.n) {
        return;
    }
    var rho = 1.0;
    if (p.partials > 0u) {
        var total = 0.0;
        for (var b = 0u; b < p.partials; b++) {
            total += partials[b];
        }
        rho = sqrt(sqrt(total)) + 1e-6;
    }
    let root = sqrt(rho);
    p_out[i] = select(0.0, p.a / root, i / p.n == i % p.n) + p.b / (rho * root) * g[i] + p.c / (rho * rho * root) * g2[i];
}
