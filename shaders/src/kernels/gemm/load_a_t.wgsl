// A [k, m], m contiguous. `slot_a` spreads the 1,024 elements of a 64 x 16 tile so that neighbours read neighbours.

fn slot_a(t: u32) -> vec2<u32> {
    return vec2(t % 64u, t / 64u);
}

fn load_a(i: u32, k: u32) -> f32 {
    if (i < p.m && k < p.k) {
        return a[k * p.m + i];
    }
    return 0.0;
}
