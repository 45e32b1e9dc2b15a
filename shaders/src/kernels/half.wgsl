
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

// The nearest float16 of a number, ties to even; what is too large becomes the largest.
fn half_bits(x: f32) -> u32 {
    let sign = (bitcast<u32>(x) >> 16u) & 0x8000u;
    let magnitude = min(abs(x), 65504.0);
    // Subnormal: a multiple of 2^-24; adding 2^23 rounds to an integer.
    let small = bitcast<u32>(magnitude * 16777216.0 + 8388608.0) & 0x7ffu;
    let bits = bitcast<u32>(magnitude) - (112u << 23u);
    let normal = (bits + 0xfffu + ((bits >> 13u) & 1u)) >> 13u;
    return sign | select(normal, small, magnitude < 6.103515625e-5);
}
