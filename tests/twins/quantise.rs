//! Quantisers: codes may differ by one at a tie, everything else follows from them.

use flow_shaders::kernels::act_quant::{blocks, values};
use flow_shaders::kernels::ternary::{groups, soften};
use flow_shaders::kernels::{act_quant, gated, hyper as slots, norm_quant, rmsnorm, ternary};
use proptest::prelude::*;

use crate::harness::{Random, both, check, close, cpu, hyper, junk, run, size, words};

/// Distance of `value` from the nearest tie of rounding, relative to values above 1.
fn near_tie(value: f64) -> bool {
    let fraction = (value - value.floor() - 0.5).abs();
    fraction <= 1e-5 * value.abs().max(1.0)
}

proptest! {
    #![proptest_config(crate::harness::config(12))]

    #[test]
    fn activation_codes(rows in size(40), cols in size(300), qmax in prop_oneof![Just(127f32), Just(7f32)], wide in 0usize..2, seed: u64) {
        let mut r = Random(seed);
        let count = if wide == 1 { 4 * cols.div_ceil(16) } else { cols.div_ceil(4) };
        let x = r.floats(rows * cols, 1.5);
        let mut h = hyper();
        h[slots::QMAX] = qmax.to_bits();
        let shape = act_quant::Shape { rows: rows as u32, cols: cols as u32, words: count as u32 };
        let buffers = [x.clone(), h, junk(rows * count), junk(2 * rows)];
        let Some((cpu, gpu)) = both(&act_quant::ACT_QUANT, &buffers, &shape) else { return Ok(()) };
        let scales = |buffers: &[Vec<u32>]| bytemuck::pod_collect_to_vec::<u32, act_quant::RowScale>(&buffers[3]);
        let (ours, theirs) = (scales(&cpu), scales(&gpu));
        let steps = |scales: &[act_quant::RowScale]| scales.iter().map(|s| s.step.to_bits()).collect::<Vec<_>>();
        close("step", &steps(&ours), &steps(&theirs), 1e-6, 0.0);
        for row in 0..rows {
            let mut sum = 0i32;
            for e in 0..4 * count {
                let byte = |words: &[u32]| (words[row * count + e / 4] >> (8 * (e % 4))) as u8 as i8;
                let (a, b) = (byte(&cpu[2]), byte(&gpu[2]));
                sum += i32::from(b);
                if a == b {
                    continue;
                }
                assert!(e < cols, "padding");
                let value = f64::from(f32::from_bits(x[row * cols + e])) / f64::from(ours[row].step);
                assert!((a - b).abs() == 1 && near_tie(value), "row {row}, {e}: {a} and {b} for {value}");
            }
            assert_eq!(sum, theirs[row].sum, "sum of codes");
        }
    }

    /// The fused kernels against their twins, and on the CPU against the single kernels: the same bits.
    #[test]
    fn norm_and_quantise_in_one(rows in size(40), cols in size(300), gated in any::<bool>(), act in 0u32..2, seed: u64) {
        let mut r = Random(seed);
        let count = 4 * cols.div_ceil(16);
        let n = rows * cols;
        let shape = norm_quant::Shape { rows: rows as u32, cols: cols as u32, words: count as u32, eps: 1e-5, act };
        let (a, b, g) = (r.floats(n, 1.5), r.floats(n, 1.5), r.floats(cols, 1.0));
        let outs = [junk(rows * count), junk(2 * rows), junk(rows)];
        let (kernel, first) = if gated { (&norm_quant::GATED_NORM_QUANT, 5) } else { (&norm_quant::NORM_QUANT, 3) };
        let mut buffers = if gated { vec![a.clone(), b.clone(), g.clone(), hyper(), junk(n)] } else { vec![a.clone(), g.clone(), hyper()] };
        buffers.extend(outs.clone());
        let fused = run(cpu(), kernel, &buffers, &shape);

        let x = if gated {
            let y = run(cpu(), &gated::GATED, &[a, b, junk(n)], &gated::Shape { n: n as u32, act }).swap_remove(2);
            assert_eq!(y, fused[4], "gated");
            y
        } else {
            a
        };
        let norm = rmsnorm::Shape { rows: rows as u32, cols: cols as u32, eps: 1e-5, add: 0 };
        let normed = run(cpu(), &rmsnorm::RMSNORM, &[x, g, junk(n), junk(rows)], &norm);
        let quant = act_quant::Shape { rows: rows as u32, cols: cols as u32, words: count as u32 };
        let codes = run(cpu(), &act_quant::ACT_QUANT, &[normed[2].clone(), hyper(), outs[0].clone(), outs[1].clone()], &quant);
        assert_eq!((&codes[2], &codes[3], &normed[3]), (&fused[first], &fused[first + 1], &fused[first + 2]));

        let Some((_, gpu)) = both(kernel, &buffers, &shape) else { return Ok(()) };
        close("rstd", &fused[first + 2], &gpu[first + 2], 2e-6, 0.0);
        if gated {
            close("y", &fused[4], &gpu[4], 2e-6, 1e-6);
        }
        let scales = |buffers: &[Vec<u32>]| bytemuck::pod_collect_to_vec::<u32, act_quant::RowScale>(&buffers[first + 1]);
        for (row, (ours, theirs)) in scales(&fused).into_iter().zip(scales(&gpu)).enumerate() {
            assert!((ours.step - theirs.step).abs() <= 4e-6 * ours.step, "row {row}: {ours:?} {theirs:?}");
            let codes = |buffers: &[Vec<u32>]| bytemuck::cast_slice::<u32, i8>(&buffers[first][row * count..(row + 1) * count]).to_vec();
            let (a, b) = (codes(&fused), codes(&gpu));
            assert_eq!(b.iter().map(|q| i32::from(*q)).sum::<i32>(), theirs.sum, "row {row}: sum of codes");
            for (e, (a, b)) in a.iter().zip(&b).enumerate() {
                let value = if e < cols { f64::from(f32::from_bits(normed[2][row * cols + e])) / f64::from(ours.step) } else { 0.0 };
                assert!(a == b || (a - b).abs() == 1 && near_tie(value), "row {row}, {e}: {a} and {b} for {value}");
            }
        }
    }

    #[test]
    fn ternary_codes(rows in size(40), cols in size(300), rule in 0u32..2, seed: u64) {
        let mut r = Random(seed);
        let w = r.floats(rows * cols, 0.7);
        let shape = ternary::Shape { rows: rows as u32, cols: cols as u32, rule };
        check(&ternary::ROW_ABS_SUM, &[w.clone(), junk(rows)], &shape, 2e-6, 1e-6);
        check(&ternary::ABS_MEAN, &[r.range(rows, 0.0, 9.0), junk(1)], &shape, 2e-6, 1e-7);
        let mean = r.range(1, 0.2, 1.5);
        let count = ternary::packed_words(cols);
        let buffers = [w.clone(), mean.clone(), junk(rows * count), junk(rows)];
        let Some((cpu, gpu)) = both(&ternary::TERNARISE, &buffers, &shape) else { return Ok(()) };
        assert_eq!(cpu[3], gpu[3], "scale");
        for row in 0..rows {
            for e in 0..16 * count {
                let code = |words: &[u32]| (words[row * count + e / 16] >> (8 * (e % 4) + 2 * (e / 4 % 4)) & 3) as i32;
                let (a, b) = (code(&cpu[2]), code(&gpu[2]));
                if a != b {
                    let value = f64::from(f32::from_bits(w[row * cols + e]) / f32::from_bits(mean[0]));
                    let tie = if rule == 0 { near_tie(value) } else { (value.abs() - 0.7).abs() < 1e-5 };
                    assert!(e < cols && (a - b).abs() == 1 && tie, "row {row}, {e}: {a} and {b} for {value}");
                }
            }
        }
    }

    #[test]
    fn values_of_codes(rows in size(30), cols in size(300), seed: u64) {
        let mut r = Random(seed);
        let count = 4 * cols.div_ceil(16);
        let shape = act_quant::Shape { rows: rows as u32, cols: cols as u32, words: count as u32 };
        let scales: Vec<u32> = (0..rows).flat_map(|_| [(0.01 + r.unit()).to_bits(), 0]).collect();
        check(&values::ACT_VALUES, &[r.words(rows * count), scales, junk(rows * cols)], &shape, 0.0, 0.0);
    }

    #[test]
    fn softened_weights(rows in size(30), cols in size(300), grouped in any::<bool>(), pressure in prop_oneof![Just(0f32), Just(1f32), 0f32..1.0], inv_t in prop_oneof![Just(0f32), 1f32..100.0], seed: u64) {
        let mut r = Random(seed);
        let (cols, per, count) = if grouped { (128 + 64 * (cols % 3), 64, 64.0) } else { (cols, cols, cols as f32) };
        let groups = if grouped { cols / 64 } else { 1 };
        let w = r.floats(rows * cols, 0.7);
        let sums = r.range(rows * cols / per, 0.3 * count, 0.8 * count);
        let shape = groups::GroupShape { rows: rows as u32, cols: cols as u32, per: per as u32, groups: groups as u32, count };
        let made = [w.clone(), sums, junk(rows * ternary::packed_words(cols)), junk(groups::scale_words(rows, groups))];
        let made = run(cpu(), &groups::TERNARISE_GROUPS, &made, &shape);
        let mut h = hyper();
        (h[slots::PRESSURE], h[slots::INV_TEMPERATURE]) = (pressure.to_bits(), inv_t.to_bits());
        let factor = r.range(1, 0.5, 2.0);
        let shape = soften::Shape { rows: rows as u32, cols: cols as u32, groups: groups as u32 };
        let buffers = [w.clone(), made[2].clone(), made[3].clone(), h.clone(), factor.clone(), junk(rows * cols)];
        check(&soften::SOFTEN, &buffers, &shape, 1e-5, 1e-5);
        let y = run(cpu(), &soften::SOFTEN, &buffers, &shape).swap_remove(5);
        if pressure == 1.0 && inv_t == 0.0 {
            let hard = flow_shaders::unpack_ternary(&made[2], &made[3], cols, groups);
            assert!(y == hard.iter().map(|v| v.to_bits()).collect::<Vec<_>>(), "values of the codes, bit for bit");
        }
        if pressure == 0.0 {
            assert!(y.iter().zip(&w).all(|(y, w)| (f32::from_bits(*y) - f32::from_bits(*w)).abs() < 1e-6), "masters");
        }
        let gradients = [w, made[3].clone(), h, factor, r.floats(rows * cols, 1.0)];
        check(&soften::SOFTEN_GRAD, &gradients, &shape, 2e-4, 2e-4);
    }

    /// ACT_QUANT_BLOCKS, and ACT_ROUND_BLOCKS with the values of its codes; a block of zeros among them.
    #[test]
    fn activation_codes_in_blocks(rows in size(40), cols in size(300), seed: u64) {
        let mut r = Random(seed);
        let (count, per_row) = (4 * cols.div_ceil(16), cols.div_ceil(64));
        let mut x = r.floats(rows * cols, 1.5);
        x[..cols.min(64)].fill(0);
        let shape = act_quant::Shape { rows: rows as u32, cols: cols as u32, words: count as u32 };
        let buffers = [x.clone(), junk(rows * count), junk(rows * per_row)];
        let rounded = run(cpu(), &blocks::ACT_ROUND_BLOCKS, &[x.clone(), junk(rows * cols)], &shape).swap_remove(1);
        let ours = run(cpu(), &blocks::ACT_QUANT_BLOCKS, &buffers, &shape);
        let byte = |words: &[u32], row: usize, e: usize| (words[row * count + e / 4] >> (8 * (e % 4))) as u8 as i8;
        for (row, e) in (0..rows).flat_map(|row| (0..4 * count).map(move |e| (row, e))) {
            let q = byte(&ours[1], row, e);
            if e < cols {
                let step = f32::from_bits(ours[2][row * per_row + e / 64]);
                assert_eq!(f32::from_bits(rounded[row * cols + e]), f32::from(q) * step);
                let error = f32::from_bits(x[row * cols + e]) - f32::from(q) * step;
                assert!(error.abs() <= 0.5001 * step, "{error} of {step}");
            } else {
                assert_eq!(q, 0, "padding");
            }
        }
        let Some((_, gpu)) = both(&blocks::ACT_QUANT_BLOCKS, &buffers, &shape) else { return Ok(()) };
        close("step", &ours[2], &gpu[2], 1e-6, 0.0);
        for (row, e) in (0..rows).flat_map(|row| (0..4 * count).map(move |e| (row, e))) {
            let (a, b) = (byte(&ours[1], row, e), byte(&gpu[1], row, e));
            let value = if e < cols { f64::from(f32::from_bits(x[row * cols + e])) / f64::from(f32::from_bits(ours[2][row * per_row + e / 64])) } else { 0.0 };
            assert!(a == b || (a - b).abs() == 1 && near_tie(value), "row {row}, {e}: {a} and {b} for {value}");
        }
        let Some((_, gpu)) = both(&blocks::ACT_ROUND_BLOCKS, &[x, junk(rows * cols)], &shape) else { return Ok(()) };
        let step = |i: usize| f32::from_bits(ours[2][i / cols * per_row + i % cols / 64]);
        for (i, (a, b)) in rounded.iter().zip(&gpu[1]).enumerate() {
            assert!((f32::from_bits(*a) - f32::from_bits(*b)).abs() <= 1.001 * step(i), "{i}");
        }
    }

    /// TERNARISE_GROUPS over sums of a tensor, of rows and of groups: the same scales, codes but for ties.
    #[test]
    fn ternary_codes_in_groups(rows in size(40), groups in 1usize..5, form in 0usize..4, seed: u64) {
        let mut r = Random(seed);
        // (columns, weights of a sum, scales of a row)
        let (cols, per, stored) = match form {
            0 => (37 * groups, 0, 1),
            1 => (37 * groups, 37 * groups, 1),
            2 => (64 * groups, 64, groups),
            _ => (256 * groups, 256, 4 * groups),
        };
        let w = r.floats(rows * cols, 0.7);
        let count = if per == 0 { 1.0 } else { per as f32 };
        let sums = r.range((rows * cols).checked_div(per).unwrap_or(1), 0.3 * count, 1.2 * count);
        let shape = groups::GroupShape { rows: rows as u32, cols: cols as u32, per: per as u32, groups: stored as u32, count };
        let words = ternary::packed_words(cols);
        let buffers = [w.clone(), sums.clone(), junk(rows * words), junk(groups::scale_words(rows, stored))];
        let Some((cpu, gpu)) = both(&groups::TERNARISE_GROUPS, &buffers, &shape) else { return Ok(()) };
        assert_eq!(cpu[3], gpu[3], "scales");
        for (row, e) in (0..rows).flat_map(|row| (0..16 * words).map(move |e| (row, e))) {
            let code = |all: &[u32]| (all[row * words + e / 16] >> (8 * (e % 4) + 2 * (e / 4 % 4)) & 3) as i32;
            let (a, b) = (code(&cpu[2]), code(&gpu[2]));
            if a != b {
                let sum = f32::from_bits(sums[(row * cols + e).checked_div(per).unwrap_or(0)]);
                let value = f64::from(f32::from_bits(w[row * cols + e]) / half::f16::from_f32(sum / count).to_f32());
                assert!(e < cols && (a - b).abs() == 1 && near_tie(value), "row {row}, {e}: {a} and {b} for {value}");
            }
        }
    }

    #[test]
    fn ternary_gradient(rows in size(40), cols in size(300), seed: u64) {
        let mut r = Random(seed);
        let n = rows * cols;
        let shape = ternary::Shape { rows: rows as u32, cols: cols as u32, rule: 1 };
        let (codes, scale) = (r.codes(rows, cols), r.floats(rows, 1.0));
        check(&ternary::THRESHOLD_GRAD, &[codes, scale, r.floats(n, 1.0), r.floats(rows, 1.0)], &shape, 1e-5, 1e-5);
    }
}

/// Exact ties round to even on both sides.
#[test]
fn ties_round_to_even() {
    // The 8 makes the step 1.
    let x: Vec<f32> = (-8..7).map(|i| i as f32 + 0.5).chain([8.0]).collect();
    let mut h = hyper();
    h[slots::QMAX] = 8f32.to_bits();
    let shape = act_quant::Shape { rows: 1, cols: 16, words: 4 };
    let Some((cpu, gpu)) = both(&act_quant::ACT_QUANT, &[words(&x), h, junk(4), junk(2)], &shape) else { return };
    let want: Vec<u8> = x.iter().map(|v| v.round_ties_even() as i8 as u8).collect();
    for out in [&cpu[2], &gpu[2]] {
        assert_eq!(bytemuck::cast_slice::<u32, u8>(out), want);
    }
}
