// k, v: for each row and head head_dim / 4 words of signed bytes (element 4 i + j in byte j of word i), then their step.
@group(0) @binding(2) var<storage, read> k: array<u32>;
@group(0) @binding(3) var<storage, read> v: array<u32>;

fn byte(word: u32, d: u32) -> f32 {
    return f32(extractBits(bitcast<i32>(word), 8u * (d % 4u), 8u));
}

fn k_at(row: u32, g: u32, d: u32) -> f32 {
    let words = p.head_dim / 4u;
    let at = (row * p.kv_heads + g) * (words + 1u);
    return byte(k[at + d / 4u], d) * bitcast<f32>(k[at + words]);
}

fn v_at(row: u32, g: u32, d: u32) -> f32 {
    let words = p.head_dim / 4u;
    let at = (row * p.kv_heads + g) * (words + 1u);
    return byte(v[at + d / 4u], d) * bitcast<f32>(v[at + words]);
}

