// act 0: SiLU x / (1 + e^-x), act 1: max(x, 0)^2.
fn activate(act: u32, x: f32) -> f32 {
    if (act == 0u) {
        // e^80 keeps the sum finite; the quotient is then already below the smallest useful value.
        return x / (1.0 + exp(min(-x, 80.0)));
    }
    let r = max(x, 0.0);
    return r * r;
}

