
// The value of a finite float16 in the low half of a word, exactly. Written out: not every target has the built-in function.
fn half_value(h: u32) -> f32 {
    let rest = h & 0x7fffu;
    let exponent = rest >> 10u;
    // 2^-24 is the unit of subnormal numbers.
    let small = f32(rest) * 5.9604645e-8;
    let normal = bitcast<f32>((rest << 13u) + (112u << 23u));
    let magnitude = select(normal, small, exponent == 0u);
    return select(magnitude, -magnitude, (h & 0x8000u) != 0u);
}

