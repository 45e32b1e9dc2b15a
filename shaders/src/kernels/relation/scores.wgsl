// What the kernels of relations share: the scores of two rows in a relation head of student and teacher.
// x_s [rows, width_s], x_t [rows, width_t], mask [rows] u32 (1 = real); a head has width / heads floats.

// Rows that are looked at together, and threads of a workgroup.
const LANES: u32 = 64u;

// Shape of mod.rs.
struct Params {
    rows: u32,
    q_len: u32,
    width_s: u32,
    width_t: u32,
    heads: u32,
    scale_s: f32,
    scale_t: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x_s: array<f32>;
@group(0) @binding(2) var<storage, read> x_t: array<f32>;
@group(0) @binding(3) var<storage, read> mask: array<u32>;

// Scores of rows t and u in head a: (student, teacher). The same bits for (u, t).
fn scores(t: u32, u: u32, a: u32) -> vec2<f32> {
    let d_s = p.width_s / p.heads;
    var product = vec2<f32>();
    var one = t * p.width_s + a * d_s;
    var other = u * p.width_s + a * d_s;
    for (var d = 0u; d < d_s; d++) {
        product.x = fma(x_s[one + d], x_s[other + d], product.x);
    }
    let d_t = p.width_t / p.heads;
    one = t * p.width_t + a * d_t;
    other = u * p.width_t + a * d_t;
    for (var d = 0u; d < d_t; d++) {
        product.y = fma(x_t[one + d], x_t[other + d], product.y);
    }
    return product * vec2<f32>(p.scale_s, p.scale_t);
}

// e^x for x <= 0, without asking exp about huge arguments.
fn exp_low(x: vec2<f32>) -> vec2<f32> {
    return select(exp(max(x, vec2<f32>(-100.0))), vec2<f32>(), x < vec2<f32>(-100.0));
}

// 1 where one of the two is NaN or infinite, by exponent bits.
fn non_finite(x: vec2<f32>) -> f32 {
    let exponents = bitcast<vec2<u32>>(x) & vec2<u32>(0x7f800000u);
    return select(0.0, 1.0, any(exponents == vec2<u32>(0x7f800000u)));
}

fn nan() -> f32 {
    // A variable, because WGSL rejects a constant expression that is NaN.
    var bits = 0x7fc00000u;
    return bitcast<f32>(bits);
}
