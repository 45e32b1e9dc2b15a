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

fn store_1(r: u32, o: u32, sum: i32) {
    if (r < p.rows && o < p.outs) {
        let row = scales[r];
        let value = (f32(sum - bitcast<i32>(row.y)) * bitcast<f32>(row.x)) * scale[o];
        let at = r * p.outs + o;
        y[at] = select(value, y[at] + value, p.add == 1u);
    }
}

