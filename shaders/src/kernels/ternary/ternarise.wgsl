// Ternary codes of w [rows, cols], packed [rows, ceil(cols / 16)] (see ternary/mod.rs), and scale [rows].
//   rule 0 (absmean, arXiv 2402.17764): s = max(mean, 1e-5), q = clamp(round_half_even(w / s), -1, 1), scale = s
//   rule 1 (threshold): q = sign(w) if |w| > 0.7 mean else 0, scale = 1
// Code q + 1; element 16 i + 4 p + j of a row sits in word i, byte j, bits 2 p. Missing elements hold 1 (zero).
// One thread per packed word.

struct Params {
    rows: u32,
    cols: u32,
    rule: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> w: array<f32>;
@group(0) @binding(2) var<storage, read> mean: array<f32>;
@group(0) @binding(3) var<storage, read_write> codes: array<u32>;
@group(0) @binding(4) var<storage, read_write> scale: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = (wid.y * groups.x + wid.x) * 256u + lane;
    let words = (p.cols + 15u) / 16u;
    if (i >= p.rows * words) {
        return;
    }
    let row = i / words;
    let first = 16u * (i % words);
    let s = max(mean[0], 1e-5);
    let threshold = 0.7 * mean[0];
    var word = 0u;
    for (var e = 0u; e < 16u; e++) {
        var code = 1u;
        if (first + e < p.cols) {
            let value = w[row * p.cols + first + e];
            if (p.rule == 0u) {
                code = u32(clamp(round(divide(value, s)), -1.0, 1.0) + 1.0);
            } else if (abs(value) > threshold) {
                code = select(0u, 2u, value > 0.0);
            }
        }
        word |= code << (8u * (e % 4u) + 2u * (e / 4u));
    }
    codes[i] = word;
    if (first == 0u) {
        scale[row] = select(1.0, s, p.rule == 0u);
    }
}
