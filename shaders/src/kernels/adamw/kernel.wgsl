// AdamW, decoupled weight decay (arXiv 1711.05101). With g' = g * clip.factor:
//   w <- w (1 - lr wd decay);  m <- b1 m + (1 - b1) g';  v <- b2 v + (1 - b2) g'^2
//   w <- w - lr (m / bias1) / (sqrt(v / bias2) + eps)
// clip [4] = (norm, factor, skip, 0): with skip nothing changes. All tensors [n]; one thread per element.

@group(0) @binding(5) var<storage, read_write> m: array<f32>;
@group(0) @binding(6) var<storage, read_write> v: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = (wid.y * groups.x + wid.x) * 256u + lane;
    if (i >= p.n || clip[2] != 0.0) {
        return;
    }
    let lr = hyper[HYPER_LR];
    let grad = g[i] * clip[1];
    let m_new = hyper[HYPER_BETA1] * m[i] + (1.0 - hyper[HYPER_BETA1]) * grad;
    let v_new = hyper[HYPER_BETA2] * v[i] + (1.0 - hyper[HYPER_BETA2]) * grad * grad;
    m[i] = m_new;
    v[i] = v_new;
    let decayed = w[i] * (1.0 - lr * hyper[HYPER_WEIGHT_DECAY] * p.decay);
    w[i] = decayed - lr * (m_new / hyper[HYPER_BIAS1]) / (sqrt(v_new / hyper[HYPER_BIAS2]) + hyper[HYPER_EPS]);
}
