// B [n, k / 2], pairs of float16, k contiguous. `slot_b` as for float32 rows.

fn slot_b(t: u32) -> vec2<u32> {
    return vec2(t / 16u, t % 16u);
}

fn load_b(k: u32, j: u32) -> f32 {
    if (k < p.k && j < p.n) {
        let pair = b[j * (p.k / 2u) + k / 2u];
        return select(low(pair), high(pair), k % 2u == 1u);
    }
    return 0.0;
}
