
// The four planes of a code word.
fn planes(word: u32) -> vec4<u32> {
    return vec4(word, word >> 2u, word >> 4u, word >> 6u) & vec4(0x03030303u);
}

// Sixteen activations times sixteen codes.
fn dot_16(a: vec4<u32>, c: vec4<u32>) -> i32 {
    return dot4I8Packed(a.x, c.x) + dot4I8Packed(a.y, c.y) + dot4I8Packed(a.z, c.z) + dot4I8Packed(a.w, c.w);
}
