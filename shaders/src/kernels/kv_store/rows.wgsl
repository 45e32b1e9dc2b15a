// What the forms of the cache share: rows x [rows, cols] that go to their positions.

struct Params {
    rows: u32,
    q_len: u32,
    kv_len: u32,
    cols: u32,
    head_dim: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> pos: array<u32>;

