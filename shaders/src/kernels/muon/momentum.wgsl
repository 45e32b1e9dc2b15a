// With g' = g * clip.factor and mu = hyper.MUON_MOMENTUM:  momentum <- mu momentum + g';  u = g' + mu momentum (Nesterov).
// w <- w (1 - lr wd) where wd = hyper.MUON_DECAY is not 0, with lr = hyper.MUON_LR.
// With clip.skip momentum and w stay and u = 0. All [n]; one thread per element.

struct Params {
    n: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> hyper: array<f32>;
@group(0) @binding(2) var<storage, read> clip: array<f32>;
@group(0) @binding(3) var<storage, read> g: array<f32>;
@group(0) @binding(4) var<storage, read_write> momentum: array<f32>;
@group(0) @binding(5) var<storage, read_write> w: array<f32>;
@group(0) @binding(6) var<storage, read_write> u: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = (wid.y * groups.x + wid.x) * 256u + lane;
    if (i >= p.n) {
        return;
    }
    if (clip[2] != 0.0) {
        u[i] = 0.0;
        return;
    }
    let mu = hyper[HYPER_MUON_MOMENTUM];
    let grad = g[i] * clip[1];
    let b = mu * momentum[i] + grad;
    momentum[i] = b;
    u[i] = grad + mu * b;
    let decay = hyper[HYPER_MUON_DECAY];
    if (decay != 0.0) {
        w[i] = w[i] * (1.0 - hyper[HYPER_MUON_LR] * decay);
    }
}
