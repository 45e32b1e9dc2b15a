//! Coefficients of Newton–Schulz steps that are best for a known range of singular values.
//!
//! A step maps a singular value x to `a x + b x³ + c x⁵`. On `[l, u]` the odd quintic nearest to 1 in the largest difference
//! is the one that differs from 1 by the same E four times, with alternating signs: at l, at its two extrema, and at u
//! (Chebyshev). The best composition of steps takes at each step the best quintic for the range that the last one left
//! ("The Polar Express", arXiv 2505.16932, theorem 3.1).

/// Room for rounding: every step but the last is for values up to 1.01 times those that can come.
const SAFETY: f64 = 1.01;
/// No step is made for a wider range than this (the authors' value): it would lift the smallest values at the price of all
/// others.
const CUSHION: f64 = 0.02407327424182761;

/// Coefficients `a, b, c` of `steps` steps for singular values in `[low, 1]`.
pub fn polar(low: f64, steps: usize) -> Vec<[f32; 3]> {
    let (mut l, mut u) = (low, 1.0);
    let mut all = Vec::with_capacity(steps);
    for step in 0..steps {
        let mut p = quintic(l.max(CUSHION * u), u);
        if l < CUSHION * u {
            // What was not made for the whole range is centred on 1 again.
            let rescale = 2.0 / (value(p, l) + value(p, u));
            p = p.map(|x| x * rescale);
        }
        l = value(p, l);
        u = 2.0 - l;
        let safety: f64 = if step + 1 < steps { SAFETY } else { 1.0 };
        let [s, s3, s5] = odd_powers(safety);
        all.push([p[0] / s, p[1] / s3, p[2] / s5].map(|x| x as f32));
    }
    all
}

/// x, x³, x⁵, by products: the same on every machine.
fn odd_powers(x: f64) -> [f64; 3] {
    [x, x * x * x, x * x * x * x * x]
}

fn value([a, b, c]: [f64; 3], x: f64) -> f64 {
    x * (a + x * x * (b + x * x * c))
}

/// The odd quintic nearest to 1 on `[l, u]`.
fn quintic(l: f64, u: f64) -> [f64; 3] {
    // The limit: value 1, slope and curvature 0 at u. Nearer than this to it four equations are too alike to solve, and its
    // error is below that of float32.
    let [u1, u3, u5] = odd_powers(u);
    let mut best = [1.875 / u1, -1.25 / u3, 0.375 / u5];
    if l >= 0.99 * u {
        return best;
    }
    let (mut q, mut r) = ((3.0 * l + u) / 4.0, (l + 3.0 * u) / 4.0);
    let mut error = f64::INFINITY;
    for _ in 0..100 {
        let row = |x: f64, sign: f64| {
            let [x, x3, x5] = odd_powers(x);
            [x, x3, x5, sign, 1.0]
        };
        let [a, b, c, e] = solve([row(l, 1.0), row(q, -1.0), row(r, 1.0), row(u, -1.0)]);
        // The extrema of the quintic: 5 c x⁴ + 3 b x² + a = 0.
        let root = (9.0 * b * b - 20.0 * a * c).max(0.0).sqrt();
        let extrema = (((-3.0 * b - root) / (10.0 * c)).sqrt(), ((-3.0 * b + root) / (10.0 * c)).sqrt());
        if ![a, b, c, e, extrema.0, extrema.1].iter().all(|x| x.is_finite()) {
            break;
        }
        (best, (q, r)) = ([a, b, c], extrema);
        if (error - e).abs() <= 1e-15 {
            break;
        }
        error = e;
    }
    best
}

/// Solves four equations by elimination with row exchange; the last column is the right-hand side.
fn solve(mut m: [[f64; 5]; 4]) -> [f64; 4] {
    for i in 0..4 {
        let pivot = (i..4).max_by(|x, y| m[*x][i].abs().total_cmp(&m[*y][i].abs())).unwrap_or(i);
        m.swap(i, pivot);
        for r in (0..4).filter(|r| *r != i) {
            let factor = m[r][i] / m[i][i];
            let pivot_row = m[i];
            m[r].iter_mut().zip(pivot_row).for_each(|(x, p)| *x -= factor * p);
        }
    }
    std::array::from_fn(|i| m[i][4] / m[i][i])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The list that the paper's authors published for low = 1e-3, before room is made for rounding.
    #[test]
    fn published_coefficients_come_out() {
        let published = [
            [8.28721201814563, -23.595886519098837, 17.300387312530933],
            [4.107059111542203, -2.9478499167379106, 0.5448431082926601],
            [3.9486908534822946, -2.908902115962949, 0.5518191394370137],
            [3.3184196573706015, -2.488488024314874, 0.51004894012372],
            [2.300652019954817, -1.6689039845747493, 0.4188073119525673],
            [1.891301407787398, -1.2679958271945868, 0.37680408948524835],
        ];
        for (step, (ours, theirs)) in polar(1e-3, 10).iter().zip(published).enumerate() {
            for (power, (x, y)) in [1, 3, 5].into_iter().zip(ours.iter().zip(theirs)) {
                let y = y / SAFETY.powi(power);
                assert!((f64::from(*x) - y).abs() < 2e-6 * y.abs(), "step {step}: {ours:?} {theirs:?}");
            }
        }
    }

    /// Whatever is asked for: finite, and no value of the range goes astray.
    #[test]
    fn every_range_has_coefficients() {
        for i in 1..4000 {
            let low = f64::from(i) / 4000.0;
            for steps in 1..=6 {
                for x in [low, (low + 1.0) / 2.0, 1.0] {
                    let y = polar(low, steps).iter().fold(x, |x, [a, b, c]| value([f64::from(*a), f64::from(*b), f64::from(*c)], x));
                    assert!((0.0..2.0).contains(&y), "{low} {steps}: {x} → {y}");
                }
            }
        }
    }

    #[test]
    fn a_range_is_mapped_near_one() {
        for (low, steps, most) in [(0.1, 2, 0.2), (0.02, 3, 0.15), (0.001, 5, 0.15)] {
            let p = polar(low, steps);
            let far = (0..=1000).map(|i| low + (1.0 - low) * f64::from(i) / 1000.0).map(|x| {
                let y = p.iter().fold(x, |x, [a, b, c]| value([f64::from(*a), f64::from(*b), f64::from(*c)], x));
                (y - 1.0).abs()
            });
            let far = far.fold(0.0, f64::max);
            assert!(far < most, "{low} {steps}: {far}");
        }
    }
}
