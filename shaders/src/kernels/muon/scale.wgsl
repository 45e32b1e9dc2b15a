// q_out = -lr factor q / divisor, with lr = hyper.MUON_LR; 0 when clip.skip is set.
// divisor = sqrt(sqrt(sum of partials) + 1e-18), 1 where there are none: the partials are those of a Gram matrix that was
// divided by its norm. q, q_out [n]; one thread per element; every thread adds the partials in order.

struct Params {
    n: u32,
    factor: f32,
    partials: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> hyper: array<f32>;
@group(0) @binding(2) var<storage, read> clip: array<f32>;
@group(0) @binding(3) var<storage, read> partials: array<f32>;
@group(0) @binding(4) var<storage, read> q: array<f32>;
@group(0) @binding(5) var<storage, read_write> q_out: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = (wid.y * groups.x + wid.x) * 256u + lane;
    if (i >= p.n) {
        return;
    }
    if (clip[2] != 0.0) {
        q_out[i] = 0.0;
        return;
    }
    var divisor = 1.0;
    if (p.partials > 0u) {
        var total = 0.0;
        for (var b = 0u; b < p.partials; b++) {
            total += partials[b];
        }
        divisor = sqrt(sqrt(total) + 1e-18);
    }
    q_out[i] = -(hyper[HYPER_MUON_LR] * p.factor / divisor) * q[i];
}
