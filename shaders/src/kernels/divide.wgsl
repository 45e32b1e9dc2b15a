// WGSL's division may be off by 2.5 ULP, which moves a value across a rounding tie that the twin rounds the other way.

// a / b with one step of correction by the remainder: the nearest float on devices with a fused multiply-add.
fn divide(a: f32, b: f32) -> f32 {
    let quotient = a / b;
    return fma(fma(-quotient, b, a), 1.0 / b, quotient);
}
