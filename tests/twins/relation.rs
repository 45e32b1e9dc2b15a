//! Attention relations: both kernels on both devices, and against the definition.

use std::process::Command;

use flow_shaders::device;
use flow_shaders::kernels::kd_loss;
use flow_shaders::kernels::relation::{RELATION, RELATION_GRAD, Shape};
use proptest::prelude::*;

use crate::harness::{Buffers, Random, adapter, both, check, close, cpu, junk, run, size, words};

/// Inputs of both kernels: `x_s`, `x_t`, mask, `meta`.
struct Case {
    shape: Shape,
    x: [Vec<u32>; 2],
    mask: Vec<u32>,
    meta: Vec<u32>,
}

impl Case {
    /// Rows of which every fourth is not real, anywhere; what these hold is NaN. Scores are about `sharp²`.
    fn new(r: &mut Random, [sequences, q_len, heads]: [usize; 3], d: [usize; 2], sharp: f32) -> Self {
        let rows = sequences * q_len;
        let shape = Shape::new(rows as u32, q_len as u32, d.map(|d| (d * heads) as u32), heads as u32);
        let mask: Vec<u32> = (0..rows).map(|_| u32::from(r.below(4) > 0)).collect();
        let x = d.map(|d| {
            let mut x = r.floats(rows * d * heads, sharp);
            let held = x.chunks_mut(d * heads).zip(&mask).filter(|(_, m)| **m == 0);
            held.for_each(|(x, _)| x.fill(f32::NAN.to_bits()));
            x
        });
        let meta = (0..rows).flat_map(|_| [0.0, r.unit(), f32::NAN, f32::NAN]).collect::<Vec<_>>();
        Self { shape, x, mask, meta: words(&meta) }
    }

    fn rows(&self) -> usize {
        self.shape.rows as usize
    }

    /// Buffers of the forward pass.
    fn forward(&self) -> Buffers {
        let [x_s, x_t] = self.x.clone();
        vec![x_s, x_t, self.mask.clone(), junk(self.rows() * 2 * self.shape.heads as usize), junk(self.rows() * 4)]
    }

    /// Buffers of the gradient, with the forward pass's statistics.
    fn backward(&self, stats: Vec<u32>, dx: Vec<u32>) -> Buffers {
        let [x_s, x_t] = self.x.clone();
        vec![x_s, x_t, self.mask.clone(), stats, self.meta.clone(), dx]
    }

    /// Σ_t w_t·kl[t] by the definition, with one float of `x_s` moved.
    fn loss(&self, at: usize, by: f64) -> f64 {
        let (q_len, heads) = (self.shape.q_len as usize, self.shape.heads as usize);
        let mut x = [&self.x[0], &self.x[1]].map(|x| x.iter().map(|w| f64::from(f32::from_bits(*w))).collect::<Vec<_>>());
        x[0][at] += by;
        let log_softmax = |side: usize, a: usize, t: usize, real: &[usize]| {
            let width = x[side].len() / self.rows();
            let d = width / heads;
            let head = |r: usize| &x[side][r * width + a * d..][..d];
            let score = |u: &usize| head(t).iter().zip(head(*u)).map(|(x, y)| x * y).sum::<f64>() / (d as f64).sqrt();
            let scores: Vec<f64> = real.iter().map(score).collect();
            let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let lse = top + scores.iter().map(|s| (s - top).exp()).sum::<f64>().ln();
            scores.into_iter().map(|s| s - lse).collect::<Vec<_>>()
        };
        let mut loss = 0.0;
        for first in (0..self.rows()).step_by(q_len) {
            let real: Vec<usize> = (first..first + q_len).filter(|r| self.mask[*r] != 0).collect();
            for (t, a) in real.iter().flat_map(|t| (0..heads).map(move |a| (*t, a))) {
                let [student, teacher] = [0, 1].map(|side| log_softmax(side, a, t, &real));
                let kl: f64 = student.iter().zip(&teacher).map(|(s, t)| t.exp() * (t - s)).sum();
                loss += f64::from(f32::from_bits(self.meta[4 * t + 1])) * kl;
            }
        }
        loss
    }
}

fn float(word: &u32) -> f64 {
    f64::from(f32::from_bits(*word))
}

proptest! {
    #![proptest_config(crate::harness::config(12))]

    #[test]
    fn both_kernels(sequences in size(3), q_len in prop_oneof![size(70), Just(129usize)], heads in size(3), d_s in size(130), d_t in prop_oneof![size(70), Just(300usize)], sharp in 0.2f32..2.0, seed: u64) {
        let mut r = Random(seed);
        let case = Case::new(&mut r, [sequences, q_len, heads], [d_s, d_t], sharp);
        let Some((ours, theirs)) = both(&RELATION, &case.forward(), &case.shape) else { return Ok(()) };
        close("lse", &ours[3], &theirs[3], 2e-6, 5e-6);
        close("losses", &ours[4], &theirs[4], 1e-5, 2e-5);
        let dx = r.floats(case.x[0].len(), 0.1);
        check(&RELATION_GRAD, &case.backward(ours[3].clone(), dx), &case.shape, 1e-5, 1e-5);
    }
}

/// The KL is the definition's, and the gradient that of differences of it, on both devices.
#[test]
fn gradients_are_differences_of_the_loss() {
    let mut r = Random(5);
    let case = Case::new(&mut r, [2, 53, 3], [20, 7], 1.3);
    let size = case.x[0].len();
    let shape = kd_loss::Shape { rows: case.shape.rows, vocab: 0, k: 0 };
    for device in std::iter::once(cpu()).chain(adapter()) {
        let forward = run(device, &RELATION, &case.forward(), &case.shape);
        let (stats, losses) = (forward[3].clone(), forward[4].clone());
        // The other losses weigh nothing here; NaN would be seen.
        let meta: Vec<f32> = case.meta.chunks(4).flat_map(|m| [0.0, f32::from_bits(m[1]), 0.0, 0.0]).collect();
        let sums = run(device, &kd_loss::LOSS_SUM, &[losses, words(&meta), words(&[0.0; 4])], &shape);
        let (got, want) = (float(&sums[2][0]), case.loss(0, 0.0));
        assert!((got - want).abs() < 2e-6 * want, "loss {got}, by definition {want}");
        let gradient = run(device, &RELATION_GRAD, &case.backward(stats, vec![0; size]), &case.shape).swap_remove(5);
        let largest = gradient.iter().map(|g| float(g).abs()).fold(0.0, f64::max);
        for at in (0..size).step_by(61) {
            let want = if case.mask[at / 60] == 0 { 0.0 } else { (case.loss(at, 1e-4) - case.loss(at, -1e-4)) / 2e-4 };
            let got = float(&gradient[at]);
            assert!((got - want).abs() < 1e-5 * largest, "gradient {at}: {got}, by differences {want}, largest {largest}");
        }
    }
}

/// Rows of one float, of sequences of one row, and of sequences without a real one.
#[test]
fn edges() {
    let mut r = Random(11);
    for (shape, d) in [([1, 1, 1], [1, 1]), ([70_001, 1, 1], [2, 1]), ([3, 64, 1], [1, 2]), ([2, 200, 1], [700, 3])] {
        let mut case = Case::new(&mut r, shape, d, 0.7);
        case.mask[..shape[1]].fill(0);
        let Some((ours, theirs)) = both(&RELATION, &case.forward(), &case.shape) else { return };
        close("lse", &ours[3], &theirs[3], 2e-6, 5e-6);
        close("losses", &ours[4], &theirs[4], 1e-5, 2e-5);
        let dx = r.floats(case.x[0].len(), 0.1);
        let (got, ours) = (case.backward(ours[3].clone(), dx.clone()), ours);
        check(&RELATION_GRAD, &got, &case.shape, 1e-5, 1e-5);
        let got = run(cpu(), &RELATION_GRAD, &got, &case.shape);
        let masked = case.mask.iter().enumerate().filter(|(_, m)| **m == 0).map(|(row, _)| row);
        for row in masked {
            let (width, heads) = (shape[2] * d[0], shape[2]);
            assert!(ours[3][2 * heads * row..][..2 * heads].iter().chain(&ours[4][4 * row..][..4]).all(|w| *w == 0), "row {row}");
            assert_eq!(got[5][width * row..][..width], dx[width * row..][..width], "row {row}");
        }
    }
}

/// A float that is not finite, or whose products are not, makes what its head gives of its sequence NaN, and nothing else.
#[test]
fn what_is_not_finite_is_seen() {
    let (sequences, q_len, heads, d) = (3, 70, 2, [5, 6]);
    let mut r = Random(3);
    let mut case = Case::new(&mut r, [sequences, q_len, heads], d, 1.0);
    case.mask.fill(1);
    for side in 0..2 {
        case.x[side] = r.floats(case.x[side].len(), 1.0);
    }
    for (side, value) in [(0, f32::NAN), (1, f32::NAN), (0, f32::NEG_INFINITY), (1, f32::INFINITY), (0, 1e25), (1, 1e25)] {
        let mut case = Case { shape: case.shape, x: case.x.clone(), mask: case.mask.clone(), meta: case.meta.clone() };
        // In the second head of the second sequence.
        case.x[side][(q_len + 67) * 2 * d[side] + d[side] + 1] = value.to_bits();
        for device in std::iter::once(cpu()).chain(adapter()) {
            let forward = run(device, &RELATION, &case.forward(), &case.shape);
            let dx = vec![0; case.x[0].len()];
            let gradient = run(device, &RELATION_GRAD, &case.backward(forward[3].clone(), dx), &case.shape).swap_remove(5);
            // A product overflows where the row meets itself; the others of 1e25 are finite.
            let all = value != 1e25;
            for row in 0..sequences * q_len {
                let hit = row / q_len == 1;
                let seen = if all { hit } else { row == q_len + 67 };
                let nan = |w: &[u32]| w.iter().filter(|w| f32::from_bits(**w).is_nan()).count();
                let what = format!("{value} on side {side}, row {row}, {}", device.name());
                assert_eq!(nan(&forward[4][4 * row..][..4]), usize::from(seen), "loss: {what}");
                assert_eq!(nan(&forward[3][4 * row..][..2]), 0, "first head: {what}");
                assert_eq!(nan(&forward[3][4 * row + 2..][..2]), 2 * usize::from(seen), "second head: {what}");
                let [first, second] = [0, d[0]].map(|at| nan(&gradient[row * 2 * d[0] + at..][..d[0]]));
                assert_eq!([first, second], [0, d[0] * usize::from(hit)], "gradient: {what}");
            }
        }
    }
}

/// Both kernels on the CPU: statistics, losses, gradient.
fn on_threads(threads: usize) -> Vec<u32> {
    let device = device::open("cpu", threads).unwrap();
    let mut r = Random(7);
    let mut all = Vec::new();
    for (shape, d) in [([1, 200, 3], [64, 40]), ([5, 61, 2], [33, 7])] {
        let case = Case::new(&mut r, shape, d, 1.0);
        let forward = run(&device, &RELATION, &case.forward(), &case.shape);
        let dx = r.floats(case.x[0].len(), 0.1);
        let gradient = run(&device, &RELATION_GRAD, &case.backward(forward[3].clone(), dx), &case.shape);
        all.extend([&forward[3], &forward[4], &gradient[5]].into_iter().flatten());
    }
    all
}

/// Tells a process of [`instruction_sets_and_threads_change_no_bit`] to write what it computes.
const CHILD: &str = "FLOW_TEST_RELATION_CHILD";

#[test]
fn instruction_sets_and_threads_change_no_bit() {
    let all = on_threads(1);
    if let Some(file) = std::env::var_os(CHILD) {
        return std::fs::write(file, bytemuck::cast_slice(&all)).unwrap();
    }
    assert!(all == on_threads(5), "threads");
    let dir = tempfile::tempdir().unwrap();
    for set in flow_shaders::simd::NAMES {
        let file = dir.path().join(set);
        let test = "relation::instruction_sets_and_threads_change_no_bit";
        let mut child = Command::new(std::env::current_exe().unwrap());
        let done = child.args(["--exact", test]).envs([("FLOW_SIMD", set.as_ref()), (CHILD, file.as_os_str())]).output().unwrap();
        assert!(done.status.success(), "{set}: {}", String::from_utf8_lossy(&done.stdout));
        assert!(std::fs::read(&file).unwrap() == bytemuck::cast_slice::<u32, u8>(&all), "{set}");
    }
}
