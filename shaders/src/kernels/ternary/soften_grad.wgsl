// dw <- dw ((1 - p) + p f'(w / s)) (formulas: ternary/soften.rs). One thread per element.

@group(0) @binding(1) var<storage, read> w: array<f32>;
@group(0) @binding(2) var<storage, read> scale: array<u32>;
@group(0) @binding(3) var<storage, read> hyper: array<f32>;
@group(0) @binding(4) var<storage, read> factor: array<f32>;
@group(0) @binding(5) var<storage, read_write> dw: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = (wid.y * groups.x + wid.x) * 256u + lane;
    if (i >= p.rows * p.cols) {
        return;
    }
    let inv_t = hyper[HYPER_INV_TEMPERATURE] / factor[0];
    if (inv_t == 0.0) {
        return;
    }
    let pressure = hyper[HYPER_PRESSURE];
    let likely = shares(w[i] / scale_of(i / p.cols, i % p.cols), inv_t);
    let all = likely.x + likely.y + likely.z;
    let mean = (likely.z - likely.x) / all;
    let square = (likely.z + likely.x) / all;
    dw[i] *= fma(pressure, 2.0 * inv_t * fma(-mean, mean, square), 1.0 - pressure);
}
