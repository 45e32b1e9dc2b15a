// B[k, n] = q[k, n] step[k], the step in the first word of scales[k], q [k, 4 ceil(n / 16)] signed bytes, element 4 i + j in byte j of word i (see act_quant).

fn slot_b(t: u32) -> vec2<u32> {
    return vec2(t % 16u, t / 16u);
}

fn load_b(k: u32, j: u32) -> f32 {
    if (k < p.k && j < p.n) {
        let word = q[k * (4u * ((p.n + 15u) / 16u)) + j / 4u];
        return f32(extractBits(bitcast<i32>(word), 8u * (j % 4u), 8u)) * bitcast<f32>(scales[k].x);
    }
    return 0.0;
}
