// Ternary codes of w [rows, cols], packed [rows, ceil(cols / 16)] (see ternary/mod.rs), whose scale is a float16:
//   s = float16(max(sum / count, 1e-5)),  q = clamp(round_half_even(w / s), -1, 1)
// sums holds sum |w| of every `per` weights in a row (per = 0: one for all of them).
// scale: with groups = 1 a float32 for each row, else float16 of every 64 weights, two in a word [rows, ceil(groups / 2)].
// One thread per packed word.

struct Params {
    rows: u32,
    cols: u32,
    per: u32,
    groups: u32,
    count: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> w: array<f32>;
@group(0) @binding(2) var<storage, read> sums: array<f32>;
@group(0) @binding(3) var<storage, read_write> codes: array<u32>;
@group(0) @binding(4) var<storage, read_write> scale: array<u32>;

// The float16 of the weights that element c of a row belongs to.
fn scale_bits(row: u32, c: u32) -> u32 {
    let at = select(0u, (row * p.cols + c) / max(p.per, 1u), p.per > 0u);
    return half_bits(max(divide(sums[at], p.count), 1e-5));
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = (wid.y * groups.x + wid.x) * 256u + lane;
    let words = (p.cols + 15u) / 16u;
    if (i >= p.rows * words) {
        return;
    }
    let row = i / words;
    let first = 16u * (i % words);
    let bits = scale_bits(row, first);
    let s = half_value(bits);
    var word = 0u;
    for (var e = 0u; e < 16u; e++) {
        var code = 1u;
        if (first + e < p.cols) {
            code = u32(clamp(round(divide(w[row * p.cols + first + e], s)), -1.0, 1.0) + 1.0);
        }
        word |= code << (8u * (e % 4u) + 2u * (e / 4u));
    }
    codes[i] = word;
    if (p.groups == 1u) {
        if (first == 0u) {
            scale[row] = bitcast<u32>(s);
        }
    } else if (first % 128u == 0u) {
        var pair = bits;
        if (first + 64u < p.cols) {
            pair |= scale_bits(row, first + 64u) << 16u;
        }
        scale[row * ((p.groups + 1u) / 2u) + first / 128u] = pair;
    }
}
