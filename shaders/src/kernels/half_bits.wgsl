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

