//! Kernels with one thread per element.

use flow_shaders::kernels::{adamw, elementwise, embed, gated, halves, kv_store, muon, peak, rope};
use proptest::prelude::*;

use crate::harness::{Random, adapter, both, check, check_exact, close, hyper, junk, run, size, words};

proptest! {
    #![proptest_config(crate::harness::config(8))]

    #[test]
    fn copy_and_zero(n in size(3000), seed: u64) {
        let x = Random(seed).words(n);
        let shape = elementwise::Shape { n: n as u32 };
        check_exact(&elementwise::COPY, &[x, junk(n)], &shape);
        check_exact(&elementwise::ZERO, &[junk(n)], &shape);
    }

    #[test]
    fn gated_activations(n in size(2000), act in 0u32..2, seed: u64) {
        let mut r = Random(seed);
        let (mut gate, up, dy) = (r.floats(n, 3.0), r.floats(n, 1.0), r.floats(n, 1.0));
        gate[0] = (-200f32).to_bits();
        gate[n - 1] = 90f32.to_bits();
        let shape = gated::Shape { n: n as u32, act };
        check(&gated::GATED, &[gate.clone(), up.clone(), junk(n)], &shape, 2e-6, 1e-6);
        check(&gated::GATED_GRAD, &[gate, up, dy, junk(n), junk(n)], &shape, 2e-6, 2e-6);
    }

    #[test]
    fn adamw_step(n in size(2000), decay in 0u32..2, skip in 0u32..2, seed: u64) {
        let mut r = Random(seed);
        let clip = words(&[2.0, 0.5, skip as f32, 0.0]);
        let buffers = [hyper(), clip, r.floats(n, 1.0), r.floats(n, 0.1), r.floats(n, 0.1), r.range(n, 0.0, 0.1)];
        check(&adamw::ADAMW, &buffers, &adamw::Shape { n: n as u32, decay: decay as f32 }, 4e-6, 1e-7);
    }

    /// Codes may differ by one where the root lies near a tie; the rest as [`adamw_step`].
    #[test]
    fn adamw_int8_step(n in size(3000), decay in 0u32..2, skip in 0u32..2, seed: u64) {
        let mut r = Random(seed);
        let clip = words(&[2.0, 0.5, skip as f32, 0.0]);
        let (bytes, scales) = adamw::int8_words(n);
        let state = [r.words(bytes), r.words(bytes), r.range(scales, 0.001, 0.1)];
        let [m, v, scales] = state;
        let buffers = [hyper(), clip, r.floats(n, 1.0), r.floats(n, 0.1), m, v, scales];
        let Some((cpu, gpu)) = both(&adamw::ADAMW_INT8, &buffers, &adamw::Shape { n: n as u32, decay: decay as f32 }) else { return Ok(()) };
        close("w", &cpu[3], &gpu[3], 4e-6, 1e-7);
        close("scales", &cpu[6], &gpu[6], 4e-6, 0.0);
        for (what, a, b) in [("m", &cpu[4], &gpu[4]), ("v", &cpu[5], &gpu[5])] {
            let apart = a.iter().zip(b).flat_map(|(a, b)| a.to_le_bytes().into_iter().zip(b.to_le_bytes())).filter(|(a, b)| a != b);
            let apart: Vec<(u8, u8)> = apart.collect();
            prop_assert!(apart.iter().all(|(a, b)| a.abs_diff(*b) == 1) && apart.len() * 200 <= 4 * a.len() + 400, "{} {:?}", what, apart);
        }
        prop_assert!(skip == 0 || cpu[3..] == buffers[3..]);
    }

    #[test]
    fn half_storage(n in size(3000), add in 0u32..2, seed: u64) {
        let mut r = Random(seed);
        let mut x = r.floats(n, 30_000.0);
        for (i, edge) in [f32::NAN, f32::INFINITY, 65_519.0, -65_520.0, 3e-6, -1e-9].into_iter().enumerate() {
            x[i * 31 % n] = edge.to_bits();
        }
        let stored = r.halves(2 * n.div_ceil(2));
        let shape = halves::Shape { n: n as u32, add };
        check_exact(&halves::PACK_HALF, &[x, stored], &shape);
        // Any float16 that is a number or an infinity.
        let number = |h: u32| if h & 0x7c00 == 0x7c00 { h & 0xfc00 } else { h };
        let halves: Vec<u32> = r.words(n.div_ceil(2)).into_iter().map(|w| number(w & 0xffff) | number(w >> 16) << 16).collect();
        check_exact(&halves::UNPACK_HALF, &[halves, junk(n)], &shape);
    }

    #[test]
    fn embedding(rows in size(70), cols in size(70), vocab in size(90), seed: u64) {
        let mut r = Random(seed);
        let ids: Vec<u32> = (0..rows).map(|_| r.below(vocab) as u32).collect();
        let shape = embed::Shape { rows: rows as u32, cols: cols as u32, vocab: vocab as u32 };
        check_exact(&embed::EMBED, &[ids.clone(), r.floats(vocab * cols, 1.0), junk(rows * cols)], &shape);

        let even = embed::Shape { cols: 2 * cols as u32, ..shape };
        check_exact(&embed::EMBED_HALF, &[ids.clone(), r.halves(vocab * 2 * cols), junk(rows * 2 * cols)], &even);

        let mut order: Vec<u32> = (0..rows as u32).collect();
        order.sort_by_key(|row| ids[*row as usize]);
        let starts: Vec<u32> = (0..=vocab as u32).map(|v| ids.iter().filter(|id| **id < v).count() as u32).collect();
        check(&embed::EMBED_GRAD, &[starts, order, r.floats(rows * cols, 1.0), r.floats(vocab * cols, 1.0)], &shape, 1e-6, 1e-6);
    }

    #[test]
    fn peak_loops(n in size(300), rounds in 1u32..100) {
        let shape = peak::Shape { n: n as u32, rounds };
        check(&peak::PEAK_FMA, &[junk(n)], &shape, 1e-5, 1e-6);
        check_exact(&peak::PEAK_DOT, &[junk(n)], &shape);
    }

    #[test]
    fn rope_rotation(rows in size(40), heads in size(7), half in size(33), inverse in 0u32..2, seed: u64) {
        let mut r = Random(seed);
        let positions = 50;
        let head_dim = 2 * half;
        let pos: Vec<u32> = (0..rows).map(|_| r.below(positions) as u32).collect();
        let shape = rope::Shape { rows: rows as u32, heads: heads as u32, head_dim: head_dim as u32, inverse };
        let buffers = [pos, r.range(positions * head_dim, -1.0, 1.0), r.floats(rows * heads * head_dim, 1.0)];
        check(&rope::ROPE, &buffers, &shape, 1e-6, 1e-6);
    }

    #[test]
    fn kv_store_rows(sequences in size(5), q_len in size(7), cols in size(33), seed: u64) {
        let mut r = Random(seed);
        let kv_len = q_len + 3;
        let rows = sequences * q_len;
        let pos: Vec<u32> = (0..rows).map(|row| (row % q_len) as u32 + 2).collect();
        let shape = kv_store::Shape { rows: rows as u32, q_len: q_len as u32, kv_len: kv_len as u32, cols: cols as u32, head_dim: cols as u32 };
        let buffers = [r.floats(rows * cols, 1.0), pos, r.floats(sequences * kv_len * cols, 1.0)];
        check_exact(&kv_store::KV_STORE, &buffers, &shape);
    }

    #[test]
    fn muon_parts(n in size(61), skip in 0u32..2, seed: u64) {
        let mut r = Random(seed);
        let all = n * n;
        let clip = words(&[2.0, 0.5, skip as f32, 0.0]);
        let buffers = [hyper(), clip.clone(), r.floats(all, 1.0), r.floats(all, 1.0), r.floats(all, 1.0), junk(all)];
        check(&muon::MUON_MOMENTUM, &buffers, &muon::Momentum { n: all as u32 }, 2e-6, 1e-6);
        let partials = r.range(5, 0.1, 3.0);
        let shape = muon::Normalise { n: all as u32, partials: 5, eps: 1e-7 };
        check(&muon::MUON_NORMALISE, &[r.floats(all, 1.0), partials, junk(all)], &shape, 2e-6, 1e-7);
        for count in [0, 5] {
            let shape = muon::Poly { n: n as u32, a: 3.4445, b: -4.7750, c: 2.0315, partials: count };
            let buffers = [r.floats(all, 0.3), r.floats(all, 0.3), r.range(5, 0.01, 0.1), junk(all)];
            check(&muon::MUON_POLY, &buffers, &shape, 4e-6, 2e-6);
            let shape = muon::Scale { n: all as u32, factor: 1.4, partials: count };
            let buffers = [hyper(), clip.clone(), r.range(5, 0.1, 1.0), r.floats(all, 0.1), junk(all)];
            check(&muon::MUON_SCALE, &buffers, &shape, 2e-6, 1e-7);
        }
    }
}

/// More than 65,535 workgroups: the grid folds into two dimensions.
#[test]
fn zero_folds_large_grids() {
    let Some(adapter) = adapter() else { return };
    let n = 65_536 * 256 + 17;
    let shape = elementwise::Shape { n: n as u32 };
    assert!((elementwise::ZERO.grid)(&flow_shaders::kernel::Params::new(&shape))[1] == 2);
    assert!(run(adapter, &elementwise::ZERO, &[junk(n)], &shape)[0].iter().all(|w| *w == 0));
}
