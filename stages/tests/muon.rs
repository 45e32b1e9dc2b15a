//! Muon with coefficients of its own against a computation in float64 that iterates on the matrix itself, with the published
//! coefficients, on every device.

mod common;

use flow_lm::config::{ModelConfig, Preset};
use flow_lm::graph::NewtonSchulz;
use flow_lm::graph::{Graph, Hold};
use flow_lm::rng::Rng;
use flow_shaders::device::Device;
use flow_shaders::kernels::hyper;

/// The first steps of the list that the authors of "The Polar Express" (arXiv 2505.16932) published, for low = 1e-3; all but
/// the last are taken for values up to 1.01.
const PUBLISHED: [[f64; 3]; 3] = [
    [8.28721201814563, -23.595886519098837, 17.300387312530933],
    [4.107059111542203, -2.9478499167379106, 0.5448431082926601],
    [3.9486908534822946, -2.908902115962949, 0.5518191394370137],
];
const SAFETY: [f64; 3] = [1.01, 1.01, 1.0];
const LR: f64 = 0.02;
const MOMENTUM: f64 = 0.95;

type Matrix = Vec<Vec<f64>>;

fn times(a: &Matrix, b: &Matrix) -> Matrix {
    let cell = |row: &Vec<f64>, j: usize| row.iter().zip(b).map(|(x, r)| x * r[j]).sum();
    a.iter().map(|row| (0..b[0].len()).map(|j| cell(row, j)).collect()).collect()
}

fn transposed(a: &Matrix) -> Matrix {
    (0..a[0].len()).map(|j| a.iter().map(|row| row[j]).collect()).collect()
}

fn combined(parts: &[(f64, &Matrix)]) -> Matrix {
    let at = |i: usize, j: usize| parts.iter().map(|(s, m)| s * m[i][j]).sum();
    (0..parts[0].1.len()).map(|i| (0..parts[0].1[0].len()).map(|j| at(i, j)).collect()).collect()
}

fn norm(a: &Matrix) -> f64 {
    a.iter().flatten().map(|x| x * x).sum::<f64>().sqrt()
}

/// The nearly orthogonal matrix of `u`.
fn orthogonal(u: &Matrix) -> Matrix {
    let gram = if u.len() <= u[0].len() { times(u, &transposed(u)) } else { times(&transposed(u), u) };
    // Divided by (Σ σ⁸)^⅛: the largest singular value is at most 1.
    let mut x = combined(&[(norm(&times(&gram, &gram)).powf(-0.25), u)]);
    for ([a, b, c], s) in PUBLISHED.into_iter().zip(SAFETY) {
        let x3 = times(&times(&x, &transposed(&x)), &x);
        let x5 = times(&times(&x, &transposed(&x)), &x3);
        x = combined(&[(a / s, &x), (b / s.powi(3), &x3), (c / s.powi(5), &x5)]);
    }
    x
}

fn matrix(values: &[f32], cols: usize) -> Matrix {
    values.chunks(cols).map(|row| row.iter().map(|v| f64::from(*v)).collect()).collect()
}

/// Weights after each of the gradients.
fn on_device(device: &Device, size: (usize, usize), w: &[f32], grads: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let plain: Vec<(Vec<f32>, f32, bool)> = grads.iter().map(|g| (g.clone(), 0.0, false)).collect();
    with_decay(device, size, w, &plain)
}

/// As [`on_device`], each gradient with a weight decay, and whether the step is skipped.
fn with_decay(device: &Device, (rows, cols): (usize, usize), w: &[f32], steps: &[(Vec<f32>, f32, bool)]) -> Vec<Vec<f32>> {
    let mut g = Graph::new(ModelConfig { layers: 1, vocab: 2, ..Preset::PocTeacher.config() }, 1, Hold::Packed);
    let list = g.program.list("muon");
    let [grad, weights, momentum, clip] =
        [("g", rows * cols), ("w", rows * cols), ("momentum", rows * cols), ("clip", 4)].map(|(name, n)| g.program.persistent(name, n));
    g.muon(list, grad, weights, momentum, clip, (rows, cols), NewtonSchulz { steps: 3, low: Some(1e-3) });
    let scalars = g.hyper;
    let mut s = device.load(g.program).expect("fits");
    let mut h = [0f32; hyper::LEN];
    (h[hyper::MUON_LR], h[hyper::MUON_MOMENTUM]) = (LR as f32, MOMENTUM as f32);
    s.write_f32(weights, w).expect("writes");
    s.write_f32(momentum, &vec![0.0; rows * cols]).expect("writes");
    let mut after = Vec::new();
    for (gradient, decay, skip) in steps {
        h[hyper::MUON_DECAY] = *decay;
        s.write_f32(scalars, &h).expect("writes");
        s.write_f32(clip, &[1.0, 1.0, f32::from(u8::from(*skip)), 0.0]).expect("writes");
        s.write_f32(grad, gradient).expect("writes");
        s.run(list).expect("runs");
        after.push(s.read_f32(weights).expect("reads"));
    }
    after
}

#[test]
fn updates_are_those_of_float64_whatever_the_size_of_the_gradient() {
    for device in common::devices() {
        for (rows, cols, scale) in [(16, 40, 1.0), (40, 16, 1e-4), (32, 32, 30.0), (48, 48, 1e-6)] {
            let mut rng = Rng::new(7, &format!("{rows} {cols}"));
            let mut random = |s: f32| -> Vec<f32> { (0..rows * cols).map(|_| s * rng.normal()).collect() };
            let (w, grads) = (random(0.05), [random(scale), random(scale)]);
            let got = on_device(&device, (rows, cols), &w, &grads);
            let (mut want, mut momentum) = (matrix(&w, cols), matrix(&vec![0.0; rows * cols], cols));
            for (g, got) in grads.iter().map(|g| matrix(g, cols)).zip(&got) {
                momentum = combined(&[(MOMENTUM, &momentum), (1.0, &g)]);
                let u = combined(&[(1.0, &g), (MOMENTUM, &momentum)]);
                let rate = LR * (rows as f64 / cols as f64).max(1.0).sqrt();
                want = combined(&[(1.0, &want), (-rate, &orthogonal(&u))]);
                let far = matrix(got, cols).iter().flatten().zip(want.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                assert!(far < 2e-5 * rate / LR, "{} {rows} × {cols} of {scale}: {far}", device.name());
            }
        }
    }
}

/// Decay shrinks the weights before the update; a skipped step, whose gradient is not finite, changes neither weights nor momentum.
#[test]
fn decay_shrinks_and_a_skipped_step_is_none() {
    for device in common::devices() {
        let mut rng = Rng::new(11, "decay");
        let mut random = |s: f32| -> Vec<f32> { (0..20 * 36).map(|_| s * rng.normal()).collect() };
        let (w, first, second) = (random(0.05), random(1.0), random(1.0));
        let nothing = vec![f32::NAN; w.len()];
        let plain = on_device(&device, (20, 36), &w, &[first.clone(), second.clone()]);
        let skipped = with_decay(&device, (20, 36), &w, &[(first.clone(), 0.0, false), (nothing, 0.5, true), (second.clone(), 0.0, false)]);
        assert_eq!(skipped[0], skipped[1], "{}", device.name());
        assert_eq!((&skipped[0], &skipped[2]), (&plain[0], &plain[1]), "{}", device.name());
        let decayed = with_decay(&device, (20, 36), &w, &[(first, 0.5, false), (second, 0.0, false)]);
        let shrunk = 1.0 - LR as f32 * 0.5;
        for ((plain, decayed), w) in plain[0].iter().zip(&decayed[0]).zip(&w) {
            assert!((decayed - (plain - w + shrunk * w)).abs() < 1e-6, "{}: {plain} {decayed} {w}", device.name());
        }
    }
}

/// A matrix that no gradient reaches stays, and what is too small to square fades instead of bursting.
#[test]
fn nothing_and_next_to_nothing_move_nothing_far() {
    for device in common::devices() {
        for scale in [0.0, 1e-30, 1e-22, 1e-12, 1e-10] {
            let mut rng = Rng::new(3, "small");
            let (w, g): (Vec<f32>, Vec<f32>) = (0..24 * 24).map(|_| (rng.normal(), scale * rng.normal())).unzip();
            let after = on_device(&device, (24, 24), &w, &[g]).remove(0);
            let far = after.iter().zip(&w).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(far <= 0.1, "{} {scale}: {far}", device.name());
            assert!(scale > 0.0 || far == 0.0);
        }
    }
}
