// What both kernels of softened weights share: how far the three values of u = w / s are likely.

struct Params {
    rows: u32,
    cols: u32,
    groups: u32,
}

@group(0) @binding(0) var<uniform> p: Params;

// What -1, 0 and +1 weigh, relative to the likeliest of them.
fn shares(u: f32, inv_t: f32) -> vec3<f32> {
    let plus = (2.0 * u - 1.0) * inv_t;
    let minus = (-2.0 * u - 1.0) * inv_t;
    let top = max(max(plus, minus), 0.0);
    return vec3(exp_low(minus - top), exp_low(-top), exp_low(plus - top));
}

