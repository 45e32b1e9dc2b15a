// y = (1 - p) w + p w~ (formulas: ternary/soften.rs). One thread per element.

@group(0) @binding(1) var<storage, read> w: array<f32>;
@group(0) @binding(2) var<storage, read> codes: array<u32>;
@group(0) @binding(3) var<storage, read> scale: array<u32>;
@group(0) @binding(4) var<storage, read> hyper: array<f32>;
@group(0) @binding(5) var<storage, read> factor: array<f32>;
@group(0) @binding(6) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = (wid.y * groups.x + wid.x) * 256u + lane;
    if (i >= p.rows * p.cols) {
        return;
    }
    let row = i / p.cols;
    let e = i % p.cols;
    let pressure = hyper[HYPER_PRESSURE];
    let inv_t = hyper[HYPER_INV_TEMPERATURE] / factor[0];
    var value = 0.0;
    if (inv_t == 0.0) {
        value = weight(row, row * ((p.cols + 15u) / 16u), e);
    } else {
        let s = scale_of(row, e);
        let likely = shares(w[i] / s, inv_t);
        value = s * ((likely.z - likely.x) / (likely.x + likely.y + likely.z));
    }
    if (pressure != 1.0) {
        value = fma(pressure, value, (1.0 - pressure) * w[i]);
    }
    y[i] = value;
}
