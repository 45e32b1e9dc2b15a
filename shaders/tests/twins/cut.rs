//! Buffers beyond what an adapter binds: the parts of a dispatch give what the whole gives, bit for bit.

use std::sync::OnceLock;

use flow_shaders::cut;
use flow_shaders::device::{self, Device, Opening};
use flow_shaders::kernel::{Kernel, Params};
use flow_shaders::kernels::{adamw, clip, elementwise, embed, gemm, hyper as slots, kd_loss, rmsnorm, sample, topk};

use crate::harness::{Random, adapter, hyper, junk, run, words};

/// Bytes that a binding may have here.
const LIMIT: u64 = 64 << 10;

fn limited() -> &'static Device {
    static LIMITED: OnceLock<Device> = OnceLock::new();
    LIMITED.get_or_init(|| {
        let name = adapter().expect("there is an adapter").name();
        device::open_with(&name, Opening { binding: Some(LIMIT), ..Opening::default() }).unwrap()
    })
}

fn check<P: bytemuck::Pod>(kernel: &'static Kernel, buffers: &[Vec<u32>], params: &P) {
    let Some(adapter) = adapter() else { return };
    let sizes: Vec<usize> = buffers.iter().map(Vec::len).collect();
    let parts = cut::parts(kernel, &Params::new(params), &sizes, (LIMIT / 4) as usize).unwrap();
    assert!(parts.len() > 1, "{}: one part", kernel.name);
    assert!(parts.iter().flat_map(|p| &p.ranges).all(|r| r.0 % 64 == 0 && r.1 as u64 * 4 <= LIMIT), "{}: {parts:?}", kernel.name);
    let (whole, cut) = (run(adapter, kernel, buffers, params), run(limited(), kernel, buffers, params));
    assert!(whole == cut, "{}: {} parts give something else", kernel.name, parts.len());
}

#[test]
fn products_in_parts() {
    let mut r = Random(1);
    let (m, n, k) = (192usize, 200, 150);
    for add in [0, 1] {
        let s = |k: usize| gemm::Shape { m: m as u32, n: n as u32, k: k as u32, add, symmetric: 0 };
        let c = r.floats(m * n, 1.0);
        for kernel in [&gemm::GEMM_NN, &gemm::GEMM_NT, &gemm::GEMM_TN] {
            check(kernel, &[r.floats(m * k, 1.0), r.floats(n * k, 1.0), c.clone()], &s(k));
        }
        check(&gemm::GEMM_NT_HALF, &[r.floats(m * 2 * k, 1.0), r.halves(n * 2 * k), c.clone()], &s(2 * k));
        // Only B, only A and C, and a long sum.
        for (m, n, k) in [(4usize, 700usize, 48usize), (700, 4, 48), (8, 20, 2000)] {
            let s = gemm::Shape { m: m as u32, n: n as u32, k: k as u32, add, symmetric: 0 };
            for kernel in [&gemm::GEMM_NN, &gemm::GEMM_NT, &gemm::GEMM_TN] {
                let buffers = [r.floats(m * k, 1.0), r.floats(n * k, 1.0), r.floats(m * n, 1.0)];
                check(kernel, &buffers, &s);
            }
        }
    }
}

#[test]
fn tables_in_parts() {
    let mut r = Random(2);
    let (rows, cols, vocab) = (200usize, 96usize, 1_000usize);
    let s = embed::Shape { rows: rows as u32, cols: cols as u32, vocab: vocab as u32 };
    let ids: Vec<u32> = (0..rows).map(|_| r.below(vocab) as u32).collect();
    check(&embed::EMBED, &[ids.clone(), r.floats(vocab * cols, 1.0), junk(rows * cols)], &s);
    check(&embed::EMBED_HALF, &[ids.clone(), r.halves(vocab * cols), junk(rows * cols)], &s);
    let mut order: Vec<u32> = (0..rows as u32).collect();
    order.sort_by_key(|row| ids[*row as usize]);
    let starts: Vec<u32> = (0..=vocab as u32).map(|v| ids.iter().filter(|id| **id < v).count() as u32).collect();
    // The gradient of the rows is read by every part as a whole.
    let s = embed::Shape { rows: 100, ..s };
    let starts: Vec<u32> = starts.iter().map(|s| (*s).min(100)).collect();
    let order = order[..100].iter().map(|row| row % 100).collect();
    check(&embed::EMBED_GRAD, &[starts, order, r.floats(100 * cols, 1.0), r.floats(vocab * cols, 1.0)], &s);
}

#[test]
fn elements_and_rows_in_parts() {
    let mut r = Random(3);
    let n = 50_001;
    let clip_factors = words(&[1.0, 0.5, 0.0, 0.0]);
    let state = [hyper(), clip_factors, r.floats(n, 1.0), r.floats(n, 1.0), r.floats(n, 1.0), r.range(n, 0.0, 1.0)];
    check(&adamw::ADAMW, &state, &adamw::Shape { n: n as u32, decay: 1.0 });
    check(&elementwise::COPY, &[r.floats(n, 1.0), junk(n)], &elementwise::Shape { n: n as u32 });
    check(&elementwise::ZERO, &[r.floats(n, 1.0)], &elementwise::Shape { n: n as u32 });
    let many = 3 * clip::BLOCK + 5;
    check(&clip::SUM_SQ, &[r.floats(many, 1.0), junk(clip::partials(many) + 3)], &clip::SumSq { n: many as u32, offset: 2 });
    let (rows, vocab, k) = (200usize, 250usize, 20usize);
    let logits = r.floats(rows * vocab, 3.0);
    let s = sample::Shape { rows: rows as u32, vocab: vocab as u32, temperature: 0.8, top_p: 0.9 };
    check(&sample::ARGMAX, &[logits.clone(), junk(rows)], &s);
    check(&sample::SAMPLE, &[logits.clone(), r.range(rows, 0.0, 0.999), junk(rows)], &s);
    let s = topk::Shape { rows: rows as u32, vocab: vocab as u32, k: k as u32, n_tau: 1, taus: [1.3, 1.0, 1.0] };
    check(&topk::TOPK, &[logits.clone(), junk(rows * k), junk(rows * k), junk(rows * 2)], &s);
    let ids: Vec<u32> = (0..rows * k).map(|i| (i % k * 3) as u32).collect();
    let meta = words(&vec![[-2.0, 1.0, 0.5, 0.1]; rows].concat());
    let labels: Vec<u32> = (0..rows).map(|_| r.below(vocab) as u32).collect();
    let mut h = hyper();
    h[slots::INV_TAU] = 1f32.to_bits();
    let buffers = [logits, ids, r.range(rows * k, -6.0, -2.0), meta, labels, h, junk(rows * 4)];
    check(&kd_loss::KD_LOSS, &buffers, &kd_loss::Shape { rows: rows as u32, vocab: vocab as u32, k: k as u32 });
}

#[test]
fn what_cannot_be_cut_is_named() {
    let params = Params::new(&rmsnorm::Shape { rows: 1000, cols: 100, eps: 1e-5, add: 0 });
    assert_eq!(cut::parts(&rmsnorm::RMSNORM, &params, &[100_000, 100, 100_000, 1000], 20_000).unwrap_err(), 0);
    assert_eq!(cut::parts(&rmsnorm::RMSNORM, &params, &[100_000, 100, 100_000, 1000], 100_000).unwrap().len(), 1);
}
