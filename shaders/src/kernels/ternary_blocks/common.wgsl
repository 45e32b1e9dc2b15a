// Packed ternary weights in groups of 64 times int8 activations (see mod.rs).  q [rows, 4 ceil(cols / 16)]: signed bytes,
// here as vectors of four words; codes [outs, ceil(cols / 16)]: 2 bits each, so that (word >> 2 p) & 0x03030303 are the codes of
// the activations in component p of the vector of the same index. steps: (bits of step, sum) of each row, or the bits of a step
// for every 64 columns of it. scale: float32 of each output, or float16 of every 64 weights, two in a word. y [rows, outs].

struct Params {
    rows: u32,
    outs: u32,
    cols: u32,
    add: u32,
    groups: u32,
    by_row: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> steps: array<u32>;
@group(0) @binding(3) var<storage, read> codes: array<u32>;
@group(0) @binding(4) var<storage, read> scale: array<u32>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;

// What codes that are one too large add.
fn sum_16(a: vec4<u32>) -> i32 {
    return dot_16(a, vec4(0x01010101u));
}

// Scale of group g of output o.
fn scale_at(o: u32, g: u32) -> f32 {
    if (p.groups == 1u) {
        return bitcast<f32>(scale[o]);
    }
    return half_value((scale[o * ((p.groups + 1u) / 2u) + g / 2u] >> (16u * (g % 2u))) & 0xffffu);
}

// Factor of the integer sums of block g of row r.
fn step_at(r: u32, g: u32) -> f32 {
    if (p.by_row == 1u) {
        return 1.0;
    }
    return bitcast<f32>(steps[r * ((p.cols + 63u) / 64u) + g]);
}

fn store_1(r: u32, o: u32, sum: f32) {
    if (r < p.rows && o < p.outs) {
        var value = sum;
        if (p.by_row == 1u) {
            value = sum * bitcast<f32>(steps[2u * r]);
        }
        let at = r * p.outs + o;
        y[at] = select(value, y[at] + value, p.add == 1u);
    }
}
