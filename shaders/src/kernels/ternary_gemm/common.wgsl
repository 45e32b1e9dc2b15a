// Packed ternary product, exact in i32:  acc = sum_k q[r, k] code[o, k] - qsum[r];
//   y[r, o] (+)= (f32(acc) step[r]) scale[o]
// q [rows, 4 ceil(cols / 16)]: signed bytes, element 4 i + j in byte j of word i, here as vectors of four words. codes
// [outs, ceil(cols / 16)]: 2 bits each, so that (word >> 2 p) & 0x03030303 are the codes of the activations in component p
// of the vector of the same index. scales [rows] = (bits of step, qsum): qsum takes the codes' offset of 1 back. y [rows, outs].

struct Params {
    rows: u32,
    outs: u32,
    cols: u32,
    add: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> scales: array<vec2<u32>>;
@group(0) @binding(3) var<storage, read> codes: array<u32>;
@group(0) @binding(4) var<storage, read> scale: array<f32>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;

// The four planes of a code word.
fn planes(word: u32) -> vec4<u32> {
    return vec4(word, word >> 2u, word >> 4u, word >> 6u) & vec4(0x03030303u);
}

// Sixteen activations times sixteen codes.
fn dot_16(a: vec4<u32>, c: vec4<u32>) -> i32 {
    return dot4I8Packed(a.x, c.x) + dot4I8Packed(a.y, c.y) + dot4I8Packed(a.z, c.z) + dot4I8Packed(a.w, c.w);
}

fn store_1(r: u32, o: u32, sum: i32) {
    if (r < p.rows && o < p.outs) {
        let row = scales[r];
        let value = (f32(sum - bitcast<i32>(row.y)) * bitcast<f32>(row.x)) * scale[o];
        let at = r * p.outs + o;
        y[at] = select(value, y[at] + value, p.add == 1u);
    }
}

