// k, v: float16 [sequences kv_len, kv_heads, head_dim], two in a word, the even one low; head_dim is even.
@group(0) @binding(2) var<storage, read> k: array<Pair>;
@group(0) @binding(3) var<storage, read> v: array<Pair>;

fn k_at(row: u32, g: u32, d: u32) -> f32 {
    let at = (row * p.kv_heads + g) * p.head_dim + d;
    let pair = k[at / 2u];
    return select(low(pair), high(pair), at % 2u == 1u);
}

fn v_at(row: u32, g: u32, d: u32) -> f32 {
    let at = (row * p.kv_heads + g) * p.head_dim + d;
    let pair = v[at / 2u];
    return select(low(pair), high(pair), at % 2u == 1u);
}

