// The scale of element e of a row.
fn scale_of(row: u32, e: u32) -> f32 {
    if (p.groups == 1u) {
        return bitcast<f32>(scale[row]);
    }
    return half_value((scale[row * ((p.groups + 1u) / 2u) + e / 128u] >> (16u * (e / 64u % 2u))) & 0xffffu);
}

