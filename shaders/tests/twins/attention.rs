//! Attention, forward and backward.

use flow_shaders::device;
use flow_shaders::kernels::attention::{self, Shape};
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
    }
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
