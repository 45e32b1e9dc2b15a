//! Kernels with one workgroup per row: norms, sums, clipping, Top-K, argmax, sampling.

use flow_shaders::kernels::{bias, clip, rmsnorm, sample, topk};
use proptest::prelude::*;

use crate::harness::{Random, both, check, check_exact, hyper, junk, size, words, zeros};

proptest! {
    #![proptest_config(crate::harness::config(8))]

    #[test]
    fn rmsnorm_both_ways(rows in size(65), cols in size(300), seed: u64) {
        let mut r = Random(seed);
        let n = rows * cols;
        let shape = rmsnorm::Shape { rows: rows as u32, cols: cols as u32, eps: 1e-5, add: (seed % 2) as u32 };
        let (x, g, dy, rstd) = (r.floats(n, 2.0), r.floats(cols, 1.0), r.floats(n, 1.0), r.range(rows, 0.3, 2.0));
        check(&rmsnorm::RMSNORM, &[x.clone(), g.clone(), junk(n), junk(rows)], &shape, 2e-6, 1e-6);
        check(&rmsnorm::RMSNORM_GRAD_X, &[x.clone(), g, rstd.clone(), dy.clone(), r.floats(n, 1.0)], &shape, 1e-5, 1e-5);
        check(&rmsnorm::RMSNORM_GRAD_G, &[x, rstd, dy, r.floats(cols, 1.0)], &shape, 1e-5, 1e-5);
    }

    #[test]
    fn biases_and_their_gradient(rows in size(65), cols in size(300), seed: u64) {
        let mut r = Random(seed);
        let shape = bias::Shape { rows: rows as u32, cols: cols as u32 };
        check_exact(&bias::BIAS, &[r.floats(cols, 1.0), junk(rows * cols)], &shape);
        check(&bias::BIAS_GRAD, &[r.floats(rows * cols, 1.0), r.floats(cols, 1.0)], &shape, 1e-5, 1e-5);
    }

    #[test]
    fn squares_and_clipping(n in prop_oneof![size(300), Just(16_384usize), Just(50_001usize)], scale in 0.001f32..10.0, seed: u64) {
        let mut r = Random(seed);
        let parts = clip::partials(n);
        let shape = clip::SumSq { n: n as u32, offset: 2 };
        check(&clip::SUM_SQ, &[r.floats(n, scale), zeros(parts + 3)], &shape, 1e-5, 0.0);
        check(&clip::CLIP_FINISH, &[r.range(n.min(700), 0.0, scale), hyper(), junk(4)], &clip::Finish { n: n.min(700) as u32 }, 1e-5, 0.0);
    }

    #[test]
    fn topk_and_tail(rows in size(9), vocab in size(700), k in prop_oneof![size(64), 65usize..700], n_tau in 0u32..4, seed: u64) {
        let mut r = Random(seed);
        let k = k.min(vocab);
        let mut z = r.floats(rows * vocab, 3.0);
        // Equal values across lanes: the lower id goes first.
        for i in 0..z.len() / 3 {
            let at = r.below(z.len());
            z[at] = z[i];
        }
        let shape = topk::Shape { rows: rows as u32, vocab: vocab as u32, k: k as u32, n_tau, taus: [0.5, 1.7, 4.0] };
        let width = 1 + n_tau as usize;
        let Some((cpu, gpu)) = both(&topk::TOPK, &[z, junk(rows * k), junk(rows * k), junk(rows * width)], &shape) else { return Ok(()) };
        assert_eq!(cpu[1], gpu[1], "ids");
        crate::harness::close("logprobs", &cpu[2], &gpu[2], 2e-6, 2e-6);
        crate::harness::close("other", &cpu[3], &gpu[3], 2e-6, 4e-6);
    }

    #[test]
    fn argmax_takes_the_first(rows in size(40), vocab in size(700), seed: u64) {
        let mut r = Random(seed);
        // Few distinct values: many ties.
        let z = (0..rows * vocab).map(|_| (r.below(9) as f32 - 4.0).to_bits()).collect();
        let shape = sample::Shape { rows: rows as u32, vocab: vocab as u32, temperature: 1.0, top_p: 1.0 };
        check_exact(&sample::ARGMAX, &[z, junk(rows)], &shape);
    }

    #[test]
    fn sampling(rows in size(40), vocab in size(700), top_p in prop_oneof![Just(1.0f32), 0.05f32..0.99], temperature in 0.3f32..2.0, seed: u64) {
        let mut r = Random(seed);
        let (z, u) = (r.floats(rows * vocab, 2.0), r.range(rows, 0.0, 1.0));
        let shape = sample::Shape { rows: rows as u32, vocab: vocab as u32, temperature, top_p };
        let Some((cpu, gpu)) = both(&sample::SAMPLE, &[z.clone(), u.clone(), junk(rows)], &shape) else { return Ok(()) };
        for row in 0..rows {
            let (a, b) = (cpu[2][row] as usize, gpu[2][row] as usize);
            let z: Vec<f64> = z[row * vocab..][..vocab].iter().map(|v| f64::from(f32::from_bits(*v))).collect();
            assert!(a == b || borderline(&z, f64::from(f32::from_bits(u[row])), &shape, a, b), "row {row}: {a} and {b}");
        }
    }
}

/// Whether u stands so close to a border of the cumulative distribution, or top_p to one of the nucleus, that rounding decides.
fn borderline(z: &[f64], u: f64, s: &sample::Shape, a: usize, b: usize) -> bool {
    let top = z.iter().copied().fold(f64::MIN, f64::max);
    let e: Vec<f64> = z.iter().map(|z| ((z - top) / f64::from(s.temperature)).exp()).collect();
    let total: f64 = e.iter().sum();
    let mut sorted = e.clone();
    sorted.sort_by(|x, y| y.total_cmp(x));
    let mut mass = 0.0;
    let near_nucleus = s.top_p < 1.0
        && sorted.iter().any(|x| {
            mass += x;
            (mass / total - f64::from(s.top_p)).abs() < 1e-5
        });
    let mut mass = 0.0;
    let member = sorted.iter().find(|x| {
        mass += **x;
        mass >= f64::from(s.top_p) * total * (1.0 - 1e-9)
    });
    let threshold = if s.top_p < 1.0 { member.copied().unwrap_or(0.0) * (1.0 - 1e-6) } else { 0.0 };
    let nucleus: f64 = e.iter().filter(|e| **e >= threshold).sum();
    let until = |j: usize| e[..=j].iter().filter(|e| **e >= threshold).sum::<f64>() / nucleus;
    near_nucleus || (until(a.min(b)) - u).abs() < 1e-5
}

/// More than 65,535 rows: the grid folds into two dimensions.
#[test]
fn more_rows_than_one_grid_dimension() {
    let (rows, cols) = (65_537, 3);
    let mut r = Random(5);
    let shape = rmsnorm::Shape { rows: rows as u32, cols: cols as u32, eps: 1e-5, add: 0 };
    check(&rmsnorm::RMSNORM, &[r.floats(rows * cols, 1.0), r.floats(cols, 1.0), junk(rows * cols), junk(rows)], &shape, 2e-6, 1e-6);
    let shape = sample::Shape { rows: rows as u32, vocab: 2, temperature: 1.0, top_p: 1.0 };
    check_exact(&sample::ARGMAX, &[r.floats(rows * 2, 1.0), junk(rows)], &shape);
}

/// A NaN or an infinity anywhere ends as a non-finite norm, factor 0 and skip 1.
#[test]
fn non_finite_gradients_set_skip() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 3e38] {
        let mut x = Random(1).floats(40_000, 1.0);
        x[33_333] = value.to_bits();
        let Some((cpu, gpu)) = both(&clip::SUM_SQ, &[x, zeros(3)], &clip::SumSq { n: 40_000, offset: 0 }) else { return };
        for partials in [&cpu[1], &gpu[1]] {
            assert!(!f32::from_bits(partials[2]).is_finite() && f32::from_bits(partials[1]).is_finite());
            let (a, b) = both(&clip::CLIP_FINISH, &[partials.clone(), hyper(), junk(4)], &clip::Finish { n: 3 }).unwrap();
            for out in [&a[2], &b[2]] {
                assert!(!f32::from_bits(out[0]).is_finite());
                assert_eq!(out[1..], words(&[0.0, 1.0, 0.0]));
            }
        }
    }
}
