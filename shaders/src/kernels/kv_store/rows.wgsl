// What the forms of the cache share: rows x [rows, cols] that go to their positions.

struct Params {
    rows: u32,
    q_len: u32,
    kv_len: u32,
    cols: u32,
    head_dim: u32,
    // First row of a part that binds its sequences' cache, and the rest whole (see mod.rs).
    first: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> pos: array<u32>;

// Where row r of a part lies in the cache, in positions.
fn place(r: u32) -> u32 {
    return r / p.q_len * p.kv_len + pos[r + p.first];
}

