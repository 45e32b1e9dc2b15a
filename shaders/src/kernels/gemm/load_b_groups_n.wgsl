// B[k, n]: packed ternary rows along n (see ternary/mod.rs). `slot_b`: which four columns and which k of the 64 x 16 tile
// thread t loads, so that neighbours read neighbours.

fn slot_b(t: u32) -> vec2<u32> {
    return vec2(t % 16u, t / 16u);
}

fn load_b(k: u32, j: u32) -> f32 {
    if (k < p.k && j < p.n) {
        return weight(k, k * ((p.n + 15u) / 16u), j);
    }
    return 0.0;
}
