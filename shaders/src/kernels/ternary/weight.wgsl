// A packed ternary weight: element e of row `row`, whose codes begin at word `at` (see ternary/mod.rs), with a float32 scale
// for each row, or float16 of every 64 weights, two in a word.
fn weight(row: u32, at: u32, e: u32) -> f32 {
    let code = (codes[at + e / 16u] >> (8u * (e % 4u) + 2u * (e / 4u % 4u))) & 3u;
    if (code == 1u) {
        return 0.0;
    }
    var s = 0.0;
    if (p.groups == 1u) {
        s = bitcast<f32>(scale[row]);
    } else {
        s = half_value((scale[row * ((p.groups + 1u) / 2u) + e / 128u] >> (16u * (e / 64u % 2u))) & 0xffffu);
    }
    return (f32(code) - 1.0) * s;
}

