//! The distillation loss and its sums.

use flow_shaders::kernels::{hyper as slots, kd_loss};
use proptest::prelude::*;

use crate::harness::{Random, both, check, close, hyper, junk, size, words};

proptest! {
    #![proptest_config(crate::harness::config(12))]

    #[test]
    fn kd_loss_rows(rows in size(20), vocab in size(700), k in 0usize..65, inv_tau in prop_oneof![Just(1f32), 0.2f32..2.0], sharp in 0.5f32..8.0, seed: u64) {
        let mut r = Random(seed);
        let k = k.min(vocab);
        let mut ids = Vec::new();
        let mut meta = Vec::new();
        let mut labels = Vec::new();
        for _ in 0..rows {
            let mut seen: Vec<u32> = Vec::new();
            for _ in 0..k {
                let id = r.below(vocab) as u32;
                // Absent buckets stand anywhere.
                ids.push(if seen.contains(&id) { u32::MAX } else { id });
                seen.push(id);
            }
            let w_kd = if r.below(5) == 0 { 0.0 } else { 0.7 };
            meta.extend([-r.unit() * 9.0, w_kd, r.unit(), r.unit()]);
            labels.push(if r.below(6) == 0 { u32::MAX } else { r.below(vocab) as u32 });
        }
        let z = r.floats(rows * vocab, sharp);
        let logprobs = r.range((rows * k).max(1), -12.0, 0.0);
        ids.resize(ids.len().max(1), 0);
        let mut h = hyper();
        h[slots::INV_TAU] = inv_tau.to_bits();
        let shape = kd_loss::Shape { rows: rows as u32, vocab: vocab as u32, k: k as u32 };
        let buffers = [z, ids, logprobs, words(&meta), labels, h, junk(rows * 4)];
        let Some((cpu, gpu)) = both(&kd_loss::KD_LOSS, &buffers, &shape) else { return Ok(()) };
        close("losses", &cpu[6], &gpu[6], 4e-6, 4e-6);
        close("gradient", &cpu[0], &gpu[0], 1e-5, 1e-6);
        check(&kd_loss::LOSS_SUM, &[cpu[6].clone(), words(&meta), words(&[1.0, 2.0, 3.0, 4.0])], &shape, 1e-5, 1e-5);
    }
}

/// A non-finite logit makes its row's losses NaN and its gradient non-finite, leaves the other rows alone, and is counted once.
#[test]
fn non_finite_rows_are_counted() {
    let (rows, vocab, k) = (5, 130, 4);
    let mut r = Random(9);
    let ids: Vec<u32> = (0..rows * k).map(|i| (i % k) as u32 * 7).collect();
    let meta: Vec<f32> = (0..rows).flat_map(|_| [-2.0, 0.7, 0.3, 0.0]).collect();
    let shape = kd_loss::Shape { rows: rows as u32, vocab: vocab as u32, k: k as u32 };
    for value in [f32::NAN, f32::INFINITY] {
        let mut z = r.floats(rows * vocab, 1.0);
        z[vocab + 77] = value.to_bits();
        z[3 * vocab] = value.to_bits();
        let buffers = [z, ids.clone(), r.range(rows * k, -5.0, -1.0), words(&meta), vec![5; rows], hyper(), junk(rows * 4)];
        let Some((cpu, gpu)) = both(&kd_loss::KD_LOSS, &buffers, &shape) else { return };
        for out in [&cpu, &gpu] {
            for row in 0..rows {
                let bad = row == 1 || row == 3;
                let float = |w: &u32| f32::from_bits(*w);
                assert_eq!(out[6][row * 4..row * 4 + 2].iter().map(float).all(f32::is_finite), !bad, "losses of row {row}");
                assert_eq!(out[0][row * vocab..(row + 1) * vocab].iter().map(float).all(f32::is_finite), !bad, "gradient of row {row}");
            }
            let sums = both(&kd_loss::LOSS_SUM, &[out[6].clone(), words(&meta), words(&[0.0; 4])], &shape).unwrap();
            for sum in [&sums.0[2], &sums.1[2]] {
                assert!(!f32::from_bits(sum[0]).is_finite());
                assert_eq!(f32::from_bits(sum[3]), 2.0);
            }
        }
    }
}
