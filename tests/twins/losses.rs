//! The distillation loss and its sums.

use flow_shaders::device::{self, Opening};
use flow_shaders::kernels::kd_loss::full;
use flow_shaders::kernels::{hyper as slots, kd_loss};
use proptest::prelude::*;

use crate::harness::{Random, both, check, close, hyper, junk, run, size, words};

proptest! {
    #![proptest_config(crate::harness::config(12))]

    #[test]
    fn kd_loss_rows(rows in size(20), vocab in size(700), k in prop_oneof![0usize..65, 65usize..700], inv_tau in prop_oneof![Just(1f32), 0.2f32..2.0], sharp in 0.5f32..8.0, seed: u64) {
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
        let buffers = [z, ids, logprobs, words(&meta), labels, h, junk(rows * 4), junk((rows * k).max(1))];
        let Some((cpu, gpu)) = both(&kd_loss::KD_LOSS, &buffers, &shape) else { return Ok(()) };
        close("losses", &cpu[6], &gpu[6], 4e-6, 4e-6);
        close("gradient", &cpu[0], &gpu[0], 1e-5, 1e-6);
        check(&kd_loss::LOSS_SUM, &[cpu[6].clone(), words(&meta), words(&[1.0, 2.0, 3.0, 4.0])], &shape, 1e-5, 1e-5);
    }
}

/// A chunk in the middle of a batch, against a teacher's whole distributions or without one.
fn against_all(r: &mut Random, (rows, first, after): (usize, usize, usize), vocab: usize, inv_tau: f32, sharp: f32) -> [Vec<u32>; 6] {
    let all = first + rows + after;
    let meta: Vec<f32> = (0..all).flat_map(|_| [0.0, if r.below(5) == 0 { 0.0 } else { 0.7 }, r.unit(), r.unit()]).collect();
    let labels = (0..all).map(|_| if r.below(6) == 0 { u32::MAX } else { r.below(vocab) as u32 }).collect();
    let mut h = hyper();
    h[slots::INV_TAU] = inv_tau.to_bits();
    [r.floats(rows * vocab, sharp), r.floats(rows * vocab, sharp), words(&meta), labels, h, junk(all * 4)]
}

proptest! {
    #![proptest_config(crate::harness::config(12))]

    #[test]
    fn kd_full_rows(rows in size(20), first in 0usize..20, vocab in size(700), inv_tau in prop_oneof![Just(1f32), 0.2f32..2.0], sharp in 0.5f32..8.0, how in 0u32..3, seed: u64) {
        let mut r = Random(seed);
        let buffers = against_all(&mut r, (rows, first, 3), vocab, inv_tau, sharp);
        let (taught, by_teacher) = (u32::from(how > 0), u32::from(how == 2));
        let shape = full::Shape { rows: rows as u32, first: first as u32, vocab: vocab as u32, taught, by_teacher };
        let Some((cpu, gpu)) = both(&full::KD_FULL, &buffers, &shape) else { return Ok(()) };
        close("losses", &cpu[5], &gpu[5], 1e-5, 1e-5);
        close("gradient", &cpu[0], &gpu[0], 1e-5, 2e-6);
        // Rows of other chunks are left alone.
        let of_others = (0..first).chain(first + rows..first + rows + 3);
        of_others.for_each(|row| assert_eq!(cpu[5][4 * row..4 * row + 4], buffers[5][4 * row..4 * row + 4]));
    }
}

/// The formulas of `kd_loss/full.rs` in f64.
#[test]
fn kd_full_is_its_definition() {
    let (rows, first, vocab) = (9, 5, 333);
    let mut r = Random(5);
    for (inv_tau, how) in [(1.0f32, 0u32), (1.0, 1), (1.0, 2), (0.6, 1), (1.7, 2)] {
        let buffers = against_all(&mut r, (rows, first, 0), vocab, inv_tau, 3.0);
        let (taught, by_teacher) = (u32::from(how > 0), u32::from(how == 2));
        let shape = full::Shape { rows: rows as u32, first: first as u32, vocab: vocab as u32, taught, by_teacher };
        let got = run(crate::harness::cpu(), &full::KD_FULL, &buffers, &shape);
        let float = |w: &u32| f64::from(f32::from_bits(*w));
        let softmax = |z: &[f64], scale: f64| {
            let e: Vec<f64> = z.iter().map(|z| (z * scale).exp()).collect();
            let sum: f64 = e.iter().sum();
            e.into_iter().map(|e| e / sum).collect::<Vec<f64>>()
        };
        for row in 0..rows {
            let of = |b: usize| buffers[b][row * vocab..(row + 1) * vocab].iter().map(float).collect::<Vec<f64>>();
            let (z, t, it) = (of(0), of(1), f64::from(inv_tau));
            let meta: Vec<f64> = buffers[2][4 * (first + row)..][..4].iter().map(float).collect();
            let label = buffers[3][first + row];
            let (ps, pt, p1) = (softmax(&z, it), softmax(&t, it), softmax(&z, 1.0));
            let near =
                |what: &str, got: f64, want: f64| assert!((got - want).abs() < 2e-5 * want.abs().max(0.1), "{what} {row}: {got} {want}");
            if label == u32::MAX {
                assert!(got[0][row * vocab..(row + 1) * vocab].iter().all(|g| *g == 0));
                continue;
            }
            let label = label as usize;
            let ce_t = -softmax(&t, 1.0)[label].ln();
            let kl: f64 = ps.iter().zip(&pt).map(|(s, t)| t * (t / s).ln()).sum();
            let (kl, ce_t, w) = if how > 0 { (kl, ce_t, meta[1] * if how == 2 { ce_t } else { 1.0 }) } else { (0.0, 0.0, 0.0) };
            let wants = [if how == 2 { kl * ce_t } else { kl }, -p1[label].ln(), kl, ce_t];
            wants.iter().enumerate().for_each(|(i, want)| near("loss", float(&got[5][4 * (first + row) + i]), *want));
            for j in 0..vocab {
                let hit = f64::from(u8::from(j == label));
                near("gradient", float(&got[0][row * vocab + j]), w * it * (ps[j] - pt[j]) + (meta[2] + meta[3]) * (p1[j] - hit));
            }
        }
    }
}

/// A logit of either side that is no number makes its row no number, on both devices, and leaves the others alone.
#[test]
fn kd_full_rows_that_are_not_finite() {
    let (rows, vocab) = (4, 200);
    let mut r = Random(6);
    for (side, value) in [(0, f32::NAN), (0, f32::INFINITY), (1, f32::NAN), (1, f32::INFINITY)] {
        let mut buffers = against_all(&mut r, (rows, 0, 0), vocab, 1.0, 1.0);
        buffers[3] = vec![7; rows];
        buffers[side][2 * vocab + 77] = value.to_bits();
        let shape = full::Shape { rows: rows as u32, first: 0, vocab: vocab as u32, taught: 1, by_teacher: 0 };
        let Some((cpu, gpu)) = both(&full::KD_FULL, &buffers, &shape) else { return };
        for (out, row) in [&cpu, &gpu].into_iter().flat_map(|out| (0..rows).map(move |row| (out, row))) {
            let finite = |b: usize, n: usize| out[b][row * n..(row + 1) * n].iter().all(|w| f32::from_bits(*w).is_finite());
            assert_eq!(finite(0, vocab), row != 2, "gradient of row {row}");
            assert_eq!(out[5][4 * row..4 * row + 1].iter().all(|w| f32::from_bits(*w).is_finite()), row != 2, "KL of row {row}");
        }
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
        let buffers = [z, ids.clone(), r.range(rows * k, -5.0, -1.0), words(&meta), vec![5; rows], hyper(), junk(rows * 4), junk(rows * k)];
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

/// Rows with `k` candidates scattered over the vocabulary, every ninth of them absent.
fn many_candidates(rows: usize, vocab: usize, k: usize) -> [Vec<u32>; 8] {
    let mut r = Random(17);
    let id = |i: usize| if i % 9 == 4 { u32::MAX } else { (i * 7 % vocab) as u32 };
    let ids: Vec<u32> = (0..rows).flat_map(|_| (0..k).map(id)).collect();
    let meta: Vec<f32> = (0..rows).flat_map(|row| [-3.0 - (row % 7) as f32, 0.7, 0.2, 0.1]).collect();
    let labels = (0..rows).map(|row| (row * 1_999 % vocab) as u32).collect();
    let mut h = hyper();
    h[slots::INV_TAU] = (1.0f32 / 1.3).to_bits();
    let z = r.floats(rows * vocab, 2.0);
    [z, ids, r.range(rows * k, -12.0, -4.0), words(&meta), labels, h, junk(rows * 4), junk(rows * k)]
}

/// The formulas of `kd_loss/mod.rs` in f64: (kl, ce, gradient) of a row.
fn plain(b: &[Vec<u32>; 8], row: usize, vocab: usize, k: usize) -> (f64, f64, Vec<f64>) {
    let float = |w: &u32| f64::from(f32::from_bits(*w));
    let z: Vec<f64> = b[0][row * vocab..(row + 1) * vocab].iter().map(float).collect();
    let (ids, targets) = (&b[1][row * k..(row + 1) * k], &b[2][row * k..(row + 1) * k]);
    let meta: Vec<f64> = b[3][row * 4..row * 4 + 4].iter().map(float).collect();
    let (label, inv_tau) = (b[4][row] as usize, float(&b[5][slots::INV_TAU]));
    let softmax = |scale: f64| {
        let e: Vec<f64> = z.iter().map(|z| (z * scale).exp()).collect();
        let sum: f64 = e.iter().sum();
        e.into_iter().map(|e| e / sum).collect::<Vec<f64>>()
    };
    let (p_1, p_tau) = (softmax(1.0), softmax(inv_tau));
    let present: Vec<(usize, f64)> =
        ids.iter().zip(targets).filter(|(id, _)| **id != u32::MAX).map(|(id, t)| (*id as usize, float(t).exp())).collect();
    let total: f64 = present.iter().map(|x| x.1).sum::<f64>() + meta[0].exp();
    let t_other = meta[0].exp() / total;
    let s_other = 1.0 - present.iter().map(|(id, _)| p_tau[*id]).sum::<f64>();
    let mut kl = t_other * (t_other / s_other).ln();
    let mut of_token = vec![t_other / s_other; vocab];
    for (id, t) in &present {
        kl += t / total * (t / total / p_tau[*id]).ln();
        of_token[*id] = t / total / p_tau[*id];
    }
    let gradient = (0..vocab).map(|j| {
        let hit = f64::from(u8::from(j == label));
        meta[1] * inv_tau * p_tau[j] * (1.0 - of_token[j]) + (meta[2] + meta[3]) * (p_1[j] - hit)
    });
    (kl, -p_1[label].ln(), gradient.collect())
}

/// 5,120 candidates a row, far beyond the lanes of any workgroup, on both devices and where an adapter binds so little that
/// logits and candidates are bound in parts: the definition.
#[test]
fn thousands_of_candidates_are_looped_over() {
    let (rows, vocab, k, binding) = (130, 6_000, 5_120, 2 << 20);
    let buffers = many_candidates(rows, vocab, k);
    let shape = kd_loss::Shape { rows: rows as u32, vocab: vocab as u32, k: k as u32 };
    let mut all = vec![run(crate::harness::cpu(), &kd_loss::KD_LOSS, &buffers, &shape)];
    if let Some(adapter) = crate::harness::adapter() {
        assert!(rows * k * 4 > binding, "candidates need parts");
        let small = Opening { binding: Some(binding as u64), ..Opening::default() };
        let small = device::open_with(&adapter.name(), small).expect("it opened before");
        all.extend([adapter, &small].map(|device| run(device, &kd_loss::KD_LOSS, &buffers, &shape)));
        assert!(all[1] == all[2], "parts give something else than the whole");
    }
    for (row, got) in (0..rows).step_by(13).flat_map(|row| all.iter().map(move |got| (row, got))) {
        let (kl, ce, gradient) = plain(&buffers, row, vocab, k);
        let float = |w: &u32| f64::from(f32::from_bits(*w));
        let near = |what: &str, got: &u32, want: f64| {
            let got = float(got);
            assert!((got - want).abs() < 1e-5 * want.abs().max(0.1), "{what} of row {row}: {got}, by definition {want}");
        };
        near("KL", &got[6][4 * row], kl);
        near("CE", &got[6][4 * row + 1], ce);
        let of_row = &got[0][row * vocab..(row + 1) * vocab];
        of_row.iter().zip(&gradient).for_each(|(got, want)| near("gradient", got, *want));
    }
}
