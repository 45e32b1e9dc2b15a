// A [m, k], k contiguous. `slot_a`: which four rows and which k of the 64 x 16 tile thread t loads, so that
// neighbours read neighbours.

fn slot_a(t: u32) -> vec2<u32> {
    return vec2(t / 16u, t % 16u);
}

fn load_a(i: u32, k: u32) -> f32 {
    if (i < p.m && k < p.k) {
        return a[i * select(p.lda, p.k, p.lda == 0u) + p.a0 + k];
    }
    return 0.0;
}
