// B [k, n], n contiguous. `slot_b` as `slot_a`, for a tile of 64 columns x 16 k.

fn slot_b(t: u32) -> vec2<u32> {
    return vec2(t % 64u, t / 64u);
}

fn load_b(k: u32, j: u32) -> f32 {
    if (k < p.k && j < p.n) {
        return b[k * p.n + j];
    }
    return 0.0;
}
