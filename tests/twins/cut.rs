//! Buffers beyond what an adapter binds: the parts of a dispatch give what the whole gives, bit for bit.

use std::sync::OnceLock;

use flow_shaders::device::{self, Device, Opening};
use flow_shaders::kernel::{Kernel, Params};
use flow_shaders::kernels::attention::Cached;
use flow_shaders::kernels::{
    act_quant, adamw, attention, bias, clip, elementwise, embed, gated, gemm, halves, hyper as slots, kd_loss, kv_store, muon, norm_quant,
    relation, rmsnorm, rope, sample, ternary, ternary_blocks, ternary_gemm, topk,
};

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
    let parts = kernel.parts(&Params::new(params), &sizes, (LIMIT / 4) as usize);
    let parts = parts.unwrap_or_else(|large| panic!("{}: binding {large} of {sizes:?} cannot be cut", kernel.name));
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
    check(&embed::EMBED_GRAD, &[starts, order, r.floats(rows * cols, 1.0), r.floats(vocab * cols, 1.0)], &s);
}

#[test]
fn elements_and_rows_in_parts() {
    let mut r = Random(3);
    let s = act_quant::Shape { rows: 300, cols: 100, words: 28 };
    check(&act_quant::blocks::ACT_QUANT_BLOCKS, &[r.floats(30_000, 1.0), junk(300 * 28), junk(600)], &s);
    check(&act_quant::blocks::ACT_ROUND_BLOCKS, &[r.floats(30_000, 1.0), junk(30_000)], &s);
    let s = bias::Shape { rows: 300, cols: 100 };
    check(&bias::BIAS, &[r.floats(100, 1.0), junk(30_000)], &s);
    check(&bias::BIAS_GRAD, &[r.floats(30_000, 1.0), r.floats(100, 1.0)], &s);
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
    let buffers = [logits, ids, r.range(rows * k, -6.0, -2.0), meta, labels, h, junk(rows * 4), junk(rows * k)];
    check(&kd_loss::KD_LOSS, &buffers, &kd_loss::Shape { rows: rows as u32, vocab: vocab as u32, k: k as u32 });
}

#[test]
fn storage_and_moments_in_parts() {
    let mut r = Random(4);
    let n = 70_001;
    let (bytes, scales) = adamw::int8_words(n);
    let factors = words(&[1.0, 0.5, 0.0, 0.0]);
    let state = [hyper(), factors.clone(), r.floats(n, 1.0), r.floats(n, 1.0), r.words(bytes), r.words(bytes), r.range(scales, 0.1, 1.0)];
    check(&adamw::ADAMW_INT8, &state, &adamw::Shape { n: n as u32, decay: 1.0 });
    for add in [0, 1] {
        let shape = halves::Shape { n: n as u32, add };
        check(&halves::PACK_HALF, &[r.floats(n, 1.0), r.halves(n + 1)], &shape);
        check(&halves::UNPACK_HALF, &[r.halves(n + 1), junk(n)], &shape);
    }
    let (momentum, normalise) = (muon::Momentum { n: n as u32 }, muon::Normalise { n: n as u32, partials: 5, eps: 1e-7 });
    check(&muon::MUON_MOMENTUM, &[hyper(), factors.clone(), r.floats(n, 1.0), r.floats(n, 1.0), r.floats(n, 1.0), junk(n)], &momentum);
    check(&muon::MUON_NORMALISE, &[r.floats(n, 1.0), r.range(5, 0.1, 1.0), junk(n)], &normalise);
    let shape = muon::Scale { n: n as u32, factor: 1.4, partials: 5 };
    check(&muon::MUON_SCALE, &[hyper(), factors, r.range(5, 0.1, 1.0), r.floats(n, 1.0), junk(n)], &shape);
}

#[test]
fn linears_in_groups_in_parts() {
    let mut r = Random(6);
    let (rows, cols, groups) = (300usize, 192usize, 3usize);
    let words_of = cols / 16;
    let w = r.floats(rows * cols, 1.0);
    let shape = ternary::groups::GroupShape { rows: rows as u32, cols: cols as u32, per: 64, groups: 3, count: 64.0 };
    let buffers = [w, r.range(rows * groups, 20.0, 60.0), junk(rows * words_of), junk(rows * 2)];
    check(&ternary::groups::TERNARISE_GROUPS, &buffers, &shape);
    let (codes, scale) = (r.codes(rows, cols), r.scales(rows, groups));
    let ids: Vec<u32> = (0..200).map(|_| r.below(rows) as u32).collect();
    let s = embed::Shape { rows: 200, cols: cols as u32, vocab: rows as u32 };
    check(&embed::EMBED_TERNARY, &[ids, codes.clone(), scale.clone(), junk(200 * cols)], &embed::TernaryShape::new(s, groups));
    let (q, _) = r.bytes(rows, cols, 4 * words_of);
    let n = 70usize;
    let buffers = [q, r.range(rows * groups, 0.01, 0.02), r.codes(n, cols), r.scales(n, groups), r.floats(rows * n, 1.0)];
    for kernel in [&ternary_blocks::TERNARY_BLOCKS_GEMM, &ternary_blocks::TERNARY_BLOCKS_GEMV] {
        let s = ternary_blocks::Shape { rows: rows as u32, outs: n as u32, cols: cols as u32, add: 1, groups: 3, by_row: 0 };
        check(kernel, &buffers, &s);
    }
    for add in [0, 1] {
        let of = |m: usize, n: usize, k: usize| {
            gemm::TernaryShape::new(gemm::Shape { m: m as u32, n: n as u32, k: k as u32, add, symmetric: 0 }, groups)
        };
        // Rows of A and C, then rows of packed weights, which are columns of C.
        for (m, n) in [(200usize, 40usize), (4, 1400)] {
            let buffers = [r.floats(m * cols, 1.0), r.codes(n, cols), r.scales(n, groups), r.floats(m * n, 1.0)];
            check(&gemm::GEMM_NT_TERNARY, &buffers, &of(m, n, cols));
            check(&gemm::GEMV_NT_TERNARY, &buffers, &of(m, n, cols));
        }
        // Rows, and a long sum.
        for (m, k) in [(300usize, 64usize), (3, 4096)] {
            let buffers = [r.floats(m * k, 1.0), r.codes(k, cols), r.scales(k, groups), r.floats(m * cols, 1.0)];
            check(&gemm::GEMM_NN_GROUPS, &buffers, &of(m, cols, k));
        }
    }
}

#[test]
fn linears_in_parts() {
    let mut r = Random(5);
    let (rows, cols) = (300usize, 100usize);
    let words_of = cols.div_ceil(16);
    let s = ternary::Shape { rows: rows as u32, cols: cols as u32, rule: 0 };
    let w = r.floats(rows * cols, 1.0);
    check(&ternary::ROW_ABS_SUM, &[w.clone(), junk(rows)], &s);
    check(&ternary::TERNARISE, &[w.clone(), words(&[0.7]), junk(rows * words_of), junk(rows)], &s);
    let codes = r.codes(rows, cols);
    check(&ternary::THRESHOLD_GRAD, &[codes, r.floats(rows, 1.0), w, r.floats(rows, 1.0)], &s);
    let (m, n, k) = (300usize, 90usize, 64usize);
    for add in [0, 1] {
        let s = gemm::Shape { m: m as u32, n: n as u32, k: k as u32, add, symmetric: 0 };
        let c = r.floats(m * n, 1.0);
        let codes = r.codes(k, n);
        check(&gemm::GEMM_NN_TERNARY, &[r.floats(m * k, 1.0), codes, r.floats(k, 1.0), c.clone()], &s);
        // Rows of C, and a long sum.
        for (m, k) in [(300usize, 40usize), (60, 900)] {
            let (q, sums) = r.bytes(k, n, 4 * n.div_ceil(16));
            let scales = sums.iter().flat_map(|s| [0.01f32.to_bits(), *s]).collect();
            let s = gemm::Shape { m: m as u32, k: k as u32, ..s };
            check(&gemm::GEMM_TN_Q8, &[r.floats(m * k, 1.0), q, scales, r.floats(m * n, 1.0)], &s);
        }
        let (m, k) = (3usize, 4096usize);
        let codes = r.codes(k, n);
        let s = gemm::Shape { m: m as u32, k: k as u32, ..s };
        check(&gemm::GEMM_NN_TERNARY, &[r.floats(m * k, 1.0), codes, r.floats(k, 1.0), r.floats(m * n, 1.0)], &s);
    }
}

#[test]
fn rows_of_activations_in_parts() {
    let mut r = Random(6);
    let (rows, cols) = (400usize, 100usize);
    let words_of = 4 * cols.div_ceil(16);
    let (x, g, rstd) = (r.floats(rows * cols, 1.0), r.floats(cols, 1.0), r.range(rows, 0.5, 2.0));
    let norm = rmsnorm::Shape { rows: rows as u32, cols: cols as u32, eps: 1e-5, add: 1 };
    check(&rmsnorm::RMSNORM, &[x.clone(), g.clone(), junk(rows * cols), junk(rows)], &norm);
    check(&rmsnorm::RMSNORM_GRAD_X, &[x.clone(), g.clone(), rstd.clone(), r.floats(rows * cols, 1.0), r.floats(rows * cols, 1.0)], &norm);
    check(&rmsnorm::RMSNORM_GRAD_G, &[x.clone(), rstd.clone(), r.floats(rows * cols, 1.0), r.floats(cols, 1.0)], &norm);
    let quant = act_quant::Shape { rows: rows as u32, cols: cols as u32, words: words_of as u32 };
    check(&act_quant::ACT_QUANT, &[x.clone(), hyper(), junk(rows * words_of), junk(2 * rows)], &quant);
    let fused = norm_quant::Shape { rows: rows as u32, cols: cols as u32, words: words_of as u32, eps: 1e-5, act: 0 };
    check(&norm_quant::NORM_QUANT, &[x.clone(), g.clone(), hyper(), junk(rows * words_of), junk(2 * rows), junk(rows)], &fused);
    let up = r.floats(rows * cols, 1.0);
    let outputs = [junk(rows * cols), junk(rows * words_of), junk(2 * rows), junk(rows)];
    check(&norm_quant::GATED_NORM_QUANT, &[vec![x.clone(), up.clone(), g, hyper()], outputs.to_vec()].concat(), &fused);
    let n = rows * cols;
    let gate = gated::Shape { n: n as u32, act: 0 };
    check(&gated::GATED, &[x.clone(), up.clone(), junk(n)], &gate);
    check(&gated::GATED_GRAD, &[x.clone(), up.clone(), r.floats(n, 1.0), junk(n), junk(n)], &gate);
    let pos: Vec<u32> = (0..rows).map(|_| r.below(30) as u32).collect();
    let turn = rope::Shape { rows: rows as u32, heads: 5, head_dim: 20, inverse: 0 };
    check(&rope::ROPE, &[pos, r.range(30 * 20, -1.0, 1.0), x], &turn);
    let (q, sums) = r.bytes(rows, cols, words_of);
    let scales: Vec<u32> = sums.iter().flat_map(|s| [0.01f32.to_bits(), *s]).collect();
    let product = ternary_gemm::Shape { rows: rows as u32, outs: 90, cols: cols as u32, add: 1 };
    let codes = r.codes(90, cols);
    check(&ternary_gemm::TERNARY_GEMM, &[q, scales, codes, r.floats(90, 1.0), r.floats(rows * 90, 1.0)], &product);
}

/// Heads, heads of keys and values, head size.
const HEADS: (usize, usize, usize) = (4, 2, 16);

fn attention_shape(sequences: usize, q_len: usize, kv_len: usize) -> attention::Shape {
    let (heads, kv_heads, head_dim) = HEADS;
    let [rows, q_len, kv_len, heads, kv_heads, head_dim] = [sequences * q_len, q_len, kv_len, heads, kv_heads, head_dim].map(|n| n as u32);
    attention::Shape { rows, q_len, kv_len, heads, kv_heads, head_dim, scale: 0.25 }
}

#[test]
fn attention_in_parts() {
    let mut r = Random(7);
    let (heads, kv_heads, head_dim) = HEADS;
    let (sequences, len) = (12usize, 64usize);
    let rows = sequences * len;
    let s = attention_shape(sequences, len, len);
    let (wide, narrow) = (rows * heads * head_dim, rows * kv_heads * head_dim);
    let (q, k, v, grad) = (r.floats(wide, 1.0), r.floats(narrow, 1.0), r.floats(narrow, 1.0), r.floats(wide, 1.0));
    let mask: Vec<u32> = (0..rows).map(|_| u32::from(r.below(5) > 0)).collect();
    let pos: Vec<u32> = (0..rows).map(|row| (row % len) as u32).collect();
    let stats = r.range(rows * heads * 2, 1.0, 3.0);
    check(&attention::ATTENTION, &[q.clone(), k.clone(), v.clone(), mask.clone(), pos.clone(), junk(wide), stats.clone()], &s);
    check(&attention::ATTENTION_DELTA, &[grad.clone(), q.clone(), stats.clone()], &s);
    let inputs = [q.clone(), k.clone(), v.clone(), mask, grad, stats];
    check(&attention::ATTENTION_GRAD_Q, &[&inputs[..], &[junk(wide)]].concat(), &s);
    check(&attention::ATTENTION_GRAD_KV, &[&inputs[..], &[junk(narrow), junk(narrow)]].concat(), &s);
    // One sequence of many rows and few keys.
    let s = attention_shape(1, rows, len);
    let few = len * kv_heads * head_dim;
    let pos = pos.iter().map(|p| p % len as u32).collect();
    check(&attention::ATTENTION, &[q, r.floats(few, 1.0), r.floats(few, 1.0), vec![1; len], pos, junk(wide), junk(rows * heads * 2)], &s);
}

#[test]
fn relations_in_parts() {
    let mut r = Random(10);
    let (rows, width_s, width_t) = (12 * 64usize, 90usize, 33usize);
    let s = relation::Shape::new(rows as u32, 64, [width_s as u32, width_t as u32], 3);
    let mask: Vec<u32> = (0..rows).map(|_| u32::from(r.below(5) > 0)).collect();
    let inputs = [r.floats(rows * width_s, 1.0), r.floats(rows * width_t, 1.0), mask];
    check(&relation::RELATION, &[&inputs[..], &[junk(rows * 6), junk(rows * 4)]].concat(), &s);
    let rest = [r.range(rows * 6, 1.0, 3.0), r.floats(rows * 4, 1.0), r.floats(rows * width_s, 1.0)];
    check(&relation::RELATION_GRAD, &[&inputs[..], &rest].concat(), &s);
}

#[test]
fn caches_in_parts() {
    let mut r = Random(8);
    let (heads, kv_heads, head_dim) = HEADS;
    let stores = [(&kv_store::KV_STORE, Cached::Float), (&kv_store::KV_STORE_HALF, Cached::Half), (&kv_store::KV_STORE_INT8, Cached::Int8)];
    // One row a sequence, where only the cache can be cut, and rows that begin where bindings may.
    for (sequences, q_len, kv_len) in [(11usize, 1usize, 384usize), (40, 64, 64)] {
        let rows = sequences * q_len;
        let s = attention_shape(sequences, q_len, kv_len);
        let pos: Vec<u32> = (0..rows).map(|row| (row / q_len * 7 % (kv_len - q_len + 1) + row % q_len) as u32).collect();
        let x = r.floats(rows * kv_heads * head_dim, 1.0);
        let mask: Vec<u32> = (0..sequences * kv_len).map(|_| u32::from(r.below(5) > 0)).collect();
        for (store, form) in stores {
            let words = sequences * kv_len * kv_heads * form.words(head_dim);
            let shape =
                kv_store::Shape { rows: s.rows, q_len: s.q_len, kv_len: s.kv_len, cols: s.kv_heads * s.head_dim, head_dim: s.head_dim };
            let mut held = || match form {
                Cached::Float => r.floats(words, 1.0),
                Cached::Half => r.halves(2 * words),
                Cached::Int8 => {
                    let step = r.range(1, 0.005, 0.01)[0];
                    let head = form.words(head_dim);
                    r.words(words).into_iter().enumerate().map(|(i, w)| if i % head == head - 1 { step } else { w }).collect()
                }
            };
            let (k, v) = (held(), held());
            check(store, &[x.clone(), pos.clone(), k.clone()], &shape);
            let q = r.floats(rows * heads * head_dim, 1.0);
            let outputs = [junk(rows * heads * head_dim), vec![0; rows * heads * 2]];
            check(form.attention(), &[vec![q, k, v, mask.clone(), pos.clone()], outputs.to_vec()].concat(), &s);
        }
    }
}

#[test]
fn a_matrix_by_its_transpose_in_parts() {
    // As Muon multiplies it: the whole makes one triangle, the parts both.
    let mut r = Random(9);
    for (side, k) in [(60usize, 900usize), (120, 150)] {
        let s = gemm::Shape { m: side as u32, n: side as u32, k: k as u32, add: 0, symmetric: 1 };
        let x = r.floats(side * k, 1.0);
        check(&gemm::GEMM_NT, &[x.clone(), x.clone(), junk(side * side)], &s);
        check(&gemm::GEMM_TN, &[x.clone(), x, junk(side * side)], &s);
    }
}

#[test]
fn what_cannot_be_cut_is_named() {
    // One triangle of a product, mirrored into the other.
    let params = Params::new(&gemm::Shape { m: 300, n: 300, k: 10, add: 0, symmetric: 1 });
    assert_eq!(gemm::GEMM_TN.parts(&params, &[3000, 3000, 90_000], 20_000).unwrap_err(), 2);
    assert_eq!(gemm::GEMM_TN.parts(&params, &[3000, 3000, 90_000], 90_000).unwrap().len(), 1);
    // Keys of one sequence.
    let params = Params::new(&attention_shape(2, 64, 1024));
    let sizes = [8192, 65_536, 65_536, 2048, 128, 8192, 1024];
    assert_eq!(attention::ATTENTION.parts(&params, &sizes, 20_000).unwrap_err(), 1);
}
