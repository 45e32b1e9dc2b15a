//! Attention, forward and backward.

use flow_shaders::device;
use flow_shaders::kernels::attention::{self, Cached, Shape};
use flow_shaders::kernels::kv_store;
use proptest::prelude::*;

use crate::harness::{Random, both, check, close, junk, run, size};

proptest! {
    #![proptest_config(crate::harness::config(8))]

    #[test]
    fn forward_and_backward(sequences in size(3), q_len in prop_oneof![size(40), Just(129usize)], kv_heads in size(3), group in size(3), head_dim in size(130), seed: u64) {
        let mut r = Random(seed);
        let heads = kv_heads * group;
        let rows = sequences * q_len;
        let s = Shape {
            rows: rows as u32, q_len: q_len as u32, kv_len: q_len as u32, heads: heads as u32, kv_heads: kv_heads as u32,
            head_dim: head_dim as u32, scale: 1.0 / (head_dim as f32).sqrt(),
        };
        let (wide, narrow) = (rows * heads * head_dim, rows * kv_heads * head_dim);
        let (q, k, v, do_) = (r.floats(wide, 1.0), r.floats(narrow, 1.0), r.floats(narrow, 1.0), r.floats(wide, 1.0));
        // Padding on either side, and holes; rows that see no key occur.
        let mask: Vec<u32> = (0..rows).map(|_| u32::from(r.below(4) > 0)).collect();
        let pos: Vec<u32> = (0..rows).map(|row| (row % q_len) as u32).collect();
        let buffers = [q.clone(), k.clone(), v.clone(), mask.clone(), pos, junk(wide), vec![0; rows * heads * 2]];
        let Some((cpu, gpu)) = both(&attention::ATTENTION, &buffers, &s) else { return Ok(()) };
        close("o", &cpu[5], &gpu[5], 1e-5, 1e-5);
        let lse = |stats: &[u32]| stats.chunks(2).map(|s| s[0]).collect::<Vec<_>>();
        close("lse", &lse(&cpu[6]), &lse(&gpu[6]), 1e-5, 1e-5);

        check(&attention::ATTENTION_DELTA, &[do_.clone(), cpu[5].clone(), cpu[6].clone()], &s, 1e-5, 1e-5);
        let stats = run(crate::harness::cpu(), &attention::ATTENTION_DELTA, &[do_.clone(), cpu[5].clone(), cpu[6].clone()], &s).swap_remove(2);
        let inputs = [q, k, v, mask, do_, stats];
        check(&attention::ATTENTION_GRAD_Q, &[&inputs[..], &[junk(wide)]].concat(), &s, 2e-5, 2e-5);
        check(&attention::ATTENTION_GRAD_KV, &[&inputs[..], &[junk(narrow), junk(narrow)]].concat(), &s, 4e-5, 4e-5);
    }

    #[test]
    fn decoding_from_a_cache(sequences in size(3), q_len in size(4), past in size(150), head_dim in prop_oneof![Just(16usize), Just(256usize)], seed: u64) {
        let mut r = Random(seed);
        let (heads, kv_heads, kv_len, rows) = (4, 2, past + q_len + 3, sequences * q_len);
        let s = Shape {
            rows: rows as u32, q_len: q_len as u32, kv_len: kv_len as u32, heads, kv_heads,
            head_dim: head_dim as u32, scale: 1.0 / (head_dim as f32).sqrt(),
        };
        let (wide, cache) = (rows * 4 * head_dim, sequences * kv_len * 2 * head_dim);
        let mask: Vec<u32> = (0..sequences * kv_len).map(|i| u32::from(i % kv_len != 1)).collect();
        let pos: Vec<u32> = (0..rows).map(|row| (past + row % q_len) as u32).collect();
        let buffers = [r.floats(wide, 2.0), r.floats(cache, 2.0), r.floats(cache, 1.0), mask, pos, junk(wide), vec![0; rows * 8]];
        let Some((cpu, gpu)) = both(&attention::ATTENTION, &buffers, &s) else { return Ok(()) };
        close("o", &cpu[5], &gpu[5], 1e-5, 2e-5);

        // The same keys and values in the other forms: stored by both devices, read by both, close to the floats. A score
        // is off by 2·2·√head_dim times a key's rounding (2⁻¹¹/√3, 0.014) times the scale: 0.001, 0.03, and now and then
        // five times that.
        for (kernel, form, off) in [(&attention::ATTENTION_HALF, Cached::Half, 1e-2), (&attention::ATTENTION_INT8, Cached::Int8, 0.3)] {
            let mut stored = buffers.clone();
            for i in [1, 2] {
                stored[i] = stored_as(form, &buffers[i], sequences, kv_len, head_dim);
            }
            let Some((ours, theirs)) = both(kernel, &stored, &s) else { return Ok(()) };
            close("o", &ours[5], &theirs[5], 1e-5, 2e-5);
            close("o against floats", &cpu[5], &ours[5], 0.0, off);
        }
    }
}

/// A cache of two heads, stored row by row; the devices agree up to the rounding of values near a tie.
fn stored_as(form: Cached, floats: &[u32], sequences: usize, kv_len: usize, head_dim: usize) -> Vec<u32> {
    let rows = sequences * kv_len;
    let shape = kv_store::Shape {
        rows: rows as u32,
        q_len: kv_len as u32,
        kv_len: kv_len as u32,
        cols: 2 * head_dim as u32,
        head_dim: head_dim as u32,
    };
    let pos: Vec<u32> = (0..rows).map(|r| (r % kv_len) as u32).collect();
    let words = form.words(head_dim);
    let buffers = [floats.to_vec(), pos, junk(rows * 2 * words)];
    let kernel = match form {
        Cached::Float => &kv_store::KV_STORE,
        Cached::Half => &kv_store::KV_STORE_HALF,
        Cached::Int8 => &kv_store::KV_STORE_INT8,
    };
    let (ours, theirs) = both(kernel, &buffers, &shape).expect("there is an adapter");
    for (i, (a, b)) in ours[2].iter().zip(&theirs[2]).enumerate() {
        let (a, b) = (a.to_le_bytes(), b.to_le_bytes());
        let same = match form {
            Cached::Half => (0..2).all(|h| {
                let half = |x: [u8; 4]| i32::from(u16::from_le_bytes([x[2 * h], x[2 * h + 1]]));
                (half(a) - half(b)).abs() <= 1
            }),
            Cached::Int8 if i % words < words - 1 => a.iter().zip(&b).all(|(a, b)| (*a as i8).abs_diff(*b as i8) <= 1),
            _ => (f32::from_le_bytes(a) / f32::from_le_bytes(b) - 1.0).abs() < 1e-6,
        };
        assert!(same, "{form:?}, word {i}: {a:?} and {b:?}");
    }
    ours[2].clone()
}

/// One sequence is cut into parts for several threads, and heads of a cache are shared among them: the bits stay.
#[test]
fn threads_change_no_bit() {
    let [one, five] = [1, 5].map(|threads| device::open("cpu", threads).unwrap());
    for (q_len, past) in [(130usize, 0usize), (1, 400)] {
        let mut r = Random(7);
        let (heads, kv_heads, head_dim, kv_len) = (4, 2, 64, past + q_len);
        let s = Shape { rows: q_len as u32, q_len: q_len as u32, kv_len: kv_len as u32, heads, kv_heads, head_dim, scale: 0.125 };
        let (wide, keys) = (q_len * 256, kv_len * 128);
        let mask: Vec<u32> = (0..kv_len).map(|_| u32::from(r.below(4) > 0)).collect();
        let pos: Vec<u32> = (past as u32..kv_len as u32).collect();
        let buffers = [r.floats(wide, 2.0), r.floats(keys, 2.0), r.floats(keys, 1.0), mask, pos, junk(wide), vec![0; q_len * 8]];
        let [a, b] = [&one, &five].map(|device| run(device, &attention::ATTENTION, &buffers, &s));
        assert!(a == b, "{q_len} rows after {past}");
    }
}
