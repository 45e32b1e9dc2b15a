// B[n, k]: packed ternary rows along k (see ternary/mod.rs). `slot_b` as for float32 rows.

fn slot_b(t: u32) -> vec2<u32> {
    return vec2(t / 16u, t % 16u);
}

fn load_b(k: u32, j: u32) -> f32 {
    if (k < p.k && j < p.n) {
        return weight(j, j * ((p.k + 15u) / 16u), k);
    }
    return 0.0;
}
