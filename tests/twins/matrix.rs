//! Matrix products.

use flow_shaders::kernel::Kernel;
use flow_shaders::kernels::{embed, gemm, ternary_blocks, ternary_gemm};
use proptest::prelude::*;

use crate::harness::{Random, adapter, check, check_exact, cpu, junk, run, size};

fn shape(m: usize, n: usize, k: usize, add: u32) -> gemm::Shape {
    gemm::Shape { m: m as u32, n: n as u32, k: k as u32, add, symmetric: 0 }
}

proptest! {
    #![proptest_config(crate::harness::config(10))]

    #[test]
    fn f32_products(m in size(150), n in size(150), k in size(200), add in 0u32..2, seed: u64) {
        let mut r = Random(seed);
        let c = r.floats(m * n, 1.0);
        // Errors of k products of size ~1: absolute.
        let atol = 4e-6 * (k as f32).sqrt() + 2e-6;
        let kernels: [&'static Kernel; 3] = [&gemm::GEMM_NN, &gemm::GEMM_NT, &gemm::GEMM_TN];
        for kernel in kernels {
            check(kernel, &[r.floats(m * k, 1.0), r.floats(n * k, 1.0), c.clone()], &shape(m, n, k, add), 4e-6, atol);
        }
        let buffers = [r.floats(m * 2 * k, 1.0), r.halves(n * 2 * k), c.clone()];
        check(&gemm::GEMM_NT_HALF, &buffers, &shape(m, n, 2 * k, add), 4e-6, 2.0 * atol);
        let buffers = [r.floats(m * k, 1.0), r.codes(k, n), r.floats(k, 1.0), c.clone()];
        check(&gemm::GEMM_NN_TERNARY, &buffers, &shape(m, n, k, add), 4e-6, atol);
        let (q, _) = r.bytes(k, n, 4 * n.div_ceil(16));
        let buffers = [r.floats(m * k, 1.0), q, scales(&r.floats(k, 0.02), &vec![0; k]), c];
        check(&gemm::GEMM_TN_Q8, &buffers, &shape(m, n, k, add), 4e-6, 4.0 * atol);
    }

    #[test]
    fn symmetric_products(n in size(150), k in size(90), seed: u64) {
        let x = Random(seed).floats(n * k, 1.0);
        let s = gemm::Shape { symmetric: 1, ..shape(n, n, k, 0) };
        check(&gemm::GEMM_NT, &[x.clone(), x.clone(), junk(n * n)], &s, 4e-6, 4e-5);
        if let Some(adapter) = adapter() {
            let c = run(adapter, &gemm::GEMM_NT, &[x.clone(), x, junk(n * n)], &s).swap_remove(2);
            assert!((0..n * n).all(|i| c[i] == c[i % n * n + i / n]), "not symmetric");
        }
    }

    /// Rows of a decoding step: also that an output does not depend on the other rows.
    #[test]
    fn f32_products_of_a_few_rows(m in size(20), n in size(90), half in size(80), add in 0u32..2, seed: u64) {
        let mut r = Random(seed);
        let k = 2 * half;
        let s = gemm::Shape { m: m as u32, n: n as u32, k: k as u32, add, symmetric: 0 };
        let (a, c) = (r.floats(m * k, 1.0), r.floats(m * n, 1.0));
        for (kernel, b) in [(&gemm::GEMV_NT, r.floats(n * k, 1.0)), (&gemm::GEMV_NT_HALF, r.halves(n * k))] {
            check(kernel, &[a.clone(), b.clone(), c.clone()], &s, 1e-5, 1e-5 * (k as f32).sqrt());
            for device in [Some(cpu()), adapter()].into_iter().flatten() {
                let all = run(device, kernel, &[a.clone(), b.clone(), c.clone()], &s).swap_remove(2);
                let last = [a[(m - 1) * k..].to_vec(), b.clone(), c[(m - 1) * n..].to_vec()];
                let one = run(device, kernel, &last, &gemm::Shape { m: 1, ..s }).swap_remove(2);
                prop_assert!(all[(m - 1) * n..] == one, "{} on {}", kernel.name, device.name());
            }
        }
    }

    #[test]
    fn ternary_products_are_exact(rows in size(70), outs in size(150), cols in size(300), add in 0u32..2, seed: u64) {
        let mut r = Random(seed);
        let (q, sums) = r.bytes(rows, cols, 4 * cols.div_ceil(16));
        let s = ternary_gemm::Shape { rows: rows as u32, outs: outs as u32, cols: cols as u32, add };
        let codes = r.codes(outs, cols);
        // Powers of two: scaling is exact, so the floats show the integers.
        let exact = [q.clone(), scales(&vec![0.5f32.to_bits(); rows], &sums), codes.clone(), vec![2f32.to_bits(); outs], vec![0; rows * outs]];
        check_exact(&ternary_gemm::TERNARY_GEMM, &exact, &s);
        let scaled = [q, scales(&r.range(rows, 0.01, 0.02), &sums), codes, r.range(outs, 0.5, 2.0), r.floats(rows * outs, 1.0)];
        check(&ternary_gemm::TERNARY_GEMM, &scaled, &s, 1e-6, 1e-6);
    }

    #[test]
    fn ternary_products_of_a_few_rows_are_exact(rows in 1usize..6, outs in size(150), cols in size(600), add in 0u32..2, seed: u64) {
        let mut r = Random(seed);
        let (q, sums) = r.bytes(rows, cols, 4 * cols.div_ceil(16));
        let s = ternary_gemm::Shape { rows: rows as u32, outs: outs as u32, cols: cols as u32, add };
        let buffers = [q, scales(&vec![0.5f32.to_bits(); rows], &sums), r.codes(outs, cols), vec![2f32.to_bits(); outs], vec![0; rows * outs]];
        check_exact(&ternary_gemm::TERNARY_GEMV, &buffers, &s);
    }
}

/// Steps and sums of rows as one buffer.
fn scales(steps: &[u32], sums: &[u32]) -> Vec<u32> {
    steps.iter().zip(sums).flat_map(|(step, sum)| [*step, *sum]).collect()
}

/// Long rows of extreme codes: no intermediate sum overflows or saturates.
#[test]
fn extreme_ternary_products_are_exact() {
    let (rows, outs, cols) = (3, 33, 16_400);
    let words = 4 * cols / 16;
    let s = ternary_gemm::Shape { rows: rows as u32, outs: outs as u32, cols: cols as u32, add: 0 };
    for (byte, code) in [(0x8080_8080u32, 0xaaaa_aaaau32), (0x7f7f_7f7f, 0xaaaa_aaaa), (0x8080_8080, 0), (0x807f_807f, 0x5a0a_5a0a)] {
        let sum: i32 = byte.to_le_bytes().iter().map(|b| i32::from(*b as i8)).sum::<i32>() * words as i32;
        let buffers = [
            vec![byte; rows * words],
            scales(&[1f32.to_bits(); 3], &[sum as u32; 3]),
            vec![code; outs * cols / 16],
            vec![1f32.to_bits(); outs],
            junk(rows * outs),
        ];
        check_exact(&ternary_gemm::TERNARY_GEMM, &buffers, &s);
        check_exact(&ternary_gemm::TERNARY_GEMV, &buffers, &s);
        let got = run(cpu(), &ternary_gemm::TERNARY_GEMM, &buffers, &s).swap_remove(4);
        let element = |e: usize| {
            let code = (code >> (8 * (e % 4) + 2 * (e / 4)) & 3) as i32 - 1;
            code * i32::from(byte.to_le_bytes()[e % 4] as i8)
        };
        let want = (0..16).map(element).sum::<i32>() * (cols / 16) as i32;
        assert!(got.iter().all(|w| f32::from_bits(*w) == want as f32), "{want}");
    }
}

proptest! {
    #![proptest_config(crate::harness::config(10))]

    /// Packed ternary weights with one scale a row or one for every 64 weights, beside the products of their values.
    #[test]
    fn products_with_packed_weights(m in size(60), n in size(90), groups in 1usize..6, row in any::<bool>(), add in 0u32..2, seed: u64) {
        let mut r = Random(seed);
        let k = if row { 37 * groups } else { 64 * groups };
        let groups = if row { 1 } else { groups };
        let c = r.floats(m * n, 1.0);
        let atol = 6e-6 * (k as f32).sqrt() + 2e-6;
        let of = |m, n, k| gemm::TernaryShape::new(shape(m, n, k, add), groups);
        let (a, codes, scale) = (r.floats(m * k, 1.0), r.codes(n, k), r.scales(n, groups));
        check(&gemm::GEMM_NT_TERNARY, &[a.clone(), codes.clone(), scale.clone(), c.clone()], &of(m, n, k), 4e-6, atol);
        check(&gemm::GEMV_NT_TERNARY, &[a.clone(), codes.clone(), scale.clone(), c.clone()], &of(m, n, k), 1e-5, 4.0 * atol);
        // On the CPU the bits of the products of the values.
        let values = run(cpu(), &embed::EMBED_TERNARY, &[(0..n as u32).collect(), codes.clone(), scale.clone(), junk(n * k)],
            &embed::TernaryShape::new(embed::Shape { rows: n as u32, cols: k as u32, vocab: n as u32 }, groups)).swap_remove(3);
        for (packed, plain) in [(&gemm::GEMM_NT_TERNARY, &gemm::GEMM_NT), (&gemm::GEMV_NT_TERNARY, &gemm::GEMV_NT)] {
            let ours = run(cpu(), packed, &[a.clone(), codes.clone(), scale.clone(), c.clone()], &of(m, n, k)).swap_remove(3);
            prop_assert!(ours == run(cpu(), plain, &[a.clone(), values.clone(), c.clone()], &shape(m, n, k, add)).swap_remove(2), "{}", packed.name);
        }
        // The gradient of the input: rows of codes along n.
        let (dy, dx) = (r.floats(m * n, 1.0), r.floats(m * k, 1.0));
        check(&gemm::GEMM_NN_GROUPS, &[dy.clone(), codes.clone(), scale.clone(), dx.clone()], &of(m, k, n), 4e-6, 1e-5 * (n as f32).sqrt());
        let ours = run(cpu(), &gemm::GEMM_NN_GROUPS, &[dy.clone(), codes, scale, dx.clone()], &of(m, k, n)).swap_remove(3);
        prop_assert!(ours == run(cpu(), &gemm::GEMM_NN, &[dy, values, dx], &shape(m, k, n, add)).swap_remove(2));
    }

    /// int8 activations by row and by block with packed weights.
    #[test]
    fn products_in_blocks(rows in size(40), outs in size(90), groups in 1usize..9, row in any::<bool>(), by_row in 0u32..2, add in 0u32..2, seed: u64) {
        let mut r = Random(seed);
        let cols = if row { 37 * groups } else { 64 * groups };
        let (q, sums) = r.bytes(rows, cols, 4 * cols.div_ceil(16));
        let steps = if by_row == 1 { scales(&r.range(rows, 0.01, 0.02), &sums) } else { r.range(rows * cols.div_ceil(64), 0.01, 0.02) };
        let groups = if row { 1 } else { groups };
        let s = ternary_blocks::Shape { rows: rows as u32, outs: outs as u32, cols: cols as u32, add, groups: groups as u32, by_row };
        let buffers = [q, steps, r.codes(outs, cols), r.scales(outs, groups), r.floats(rows * outs, 1.0)];
        for kernel in [&ternary_blocks::TERNARY_BLOCKS_GEMM, &ternary_blocks::TERNARY_BLOCKS_GEMV] {
            check(kernel, &buffers, &s, 1e-5, 1e-4);
            // A row does not depend on the others.
            for device in [Some(cpu()), adapter()].into_iter().flatten() {
                let all = run(device, kernel, &buffers, &s).swap_remove(4);
                let per = |words: &[u32]| words.len() / rows;
                let last = |words: &Vec<u32>| words[(rows - 1) * per(words)..].to_vec();
                let one = [last(&buffers[0]), last(&buffers[1]), buffers[2].clone(), buffers[3].clone(), last(&buffers[4])];
                let one = run(device, kernel, &one, &ternary_blocks::Shape { rows: 1, ..s }).swap_remove(4);
                prop_assert!(all[(rows - 1) * outs..] == one, "{} on {}", kernel.name, device.name());
            }
        }
    }
}
