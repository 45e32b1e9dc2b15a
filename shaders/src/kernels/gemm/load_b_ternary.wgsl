// B[k, n] = (code[k, n] - 1) scale[k], codes [k, ceil(n / 16)] packed 2 bits each (see ternary/mod.rs).

fn slot_b(t: u32) -> vec2<u32> {
    return vec2(t % 16u, t / 16u);
}

fn load_b(k: u32, j: u32) -> f32 {
    if (k < p.k && j < p.n) {
        let word = codes[k * ((p.n + 15u) / 16u) + j / 16u];
        return (f32((word >> (8u * (j % 4u) + 2u * (j / 4u % 4u))) & 3u) - 1.0) * scale[k];
    }
    return 0.0;
}
