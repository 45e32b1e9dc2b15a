// k, v: floats [sequences kv_len, kv_heads, head_dim].
@group(0) @binding(2) var<storage, read> k: array<f32>;
@group(0) @binding(3) var<storage, read> v: array<f32>;

fn k_at(row: u32, g: u32, d: u32) -> f32 {
    return k[(row * p.kv_heads + g) * p.head_dim + d];
}

fn v_at(row: u32, g: u32, d: u32) -> f32 {
    return v[(row * p.kv_heads + g) * p.head_dim + d];
}

