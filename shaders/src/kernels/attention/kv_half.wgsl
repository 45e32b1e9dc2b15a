// k, v: float16 [sequences kv_len, kv_heads, head_dim], two in a word, the even one low; head_dim is even.
@group(0) @binding(2) var<storage, read> k: array<u32>;
@group(0) @binding(3) var<storage, read> v: array<u32>;

fn k_at(row: u32, g: u32, d: u32) -> f32 {
    let at = (row * p.kv_heads + g) * p.head_dim + d;
    return half_value(k[at / 2u] >> (16u * (at % 2u)));
}

fn v_at(row: u32, g: u32, d: u32) -> f32 {
    let at = (row * p.kv_heads + g) * p.head_dim + d;
    return half_value(v[at / 2u] >> (16u * (at % 2u)));
}

