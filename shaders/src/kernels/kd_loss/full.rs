//! Distillation loss of some rows of logits against the whole distribution of a teacher that ran on the same device, and its
//! gradient, in place: KL(teacher ‖ student) over the vocabulary at temperature τ, plus cross-entropy at τ = 1.
//!
//! `t = softmax(teacher / τ)`, `p = softmax(logits / τ)`: `kl = Σ_j t_j (ln t_j − ln p_j)`,
//! `dz_j = (w_kd/τ)·(p_j − t_j) + (w_ce + w_format)·(softmax(z)_j − [j = label])`. With `by_teacher` the weight of a row's KL is
//! multiplied by the teacher's own cross-entropy there (TSLD, arXiv 2308.06744). Rows come in chunks, so that
//! `[rows, vocab]` never exists whole.

use bytemuck::{Pod, Zeroable};
use rayon::prelude::*;

use super::super::hyper;
use super::super::lanes::{LANES, MANY_LANES};
use crate::cut::Cut;
use crate::kernel::{Bufs, Kernel, NO_SCRATCH, Params, Variant, grid_1d, read, update};
use crate::simd::math::{LANES as WIDTH, exp, fold, ln, max, sum};
use crate::simd::scratch;

/// Shapes: `logits`, `teacher [rows, vocab]` of a chunk; of the whole batch `meta [_, 4]` = (_, w_kd, w_ce, w_format), `labels
/// [_] i32`, `losses [_, 4]` = (KL as it is weighed, CE, KL, the teacher's CE; the last two 0 without a teacher).
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Shape {
    /// Rows of the chunk.
    pub rows: u32,
    /// The first of them in the batch.
    pub first: u32,
    /// Vocabulary.
    pub vocab: u32,
    /// 1: there is a teacher; 0: cross-entropy only, and `teacher` is not read.
    pub taught: u32,
    /// 1: the teacher's own cross-entropy weighs each row's KL.
    pub by_teacher: u32,
}

/// Bindings: `logits` (becomes the gradient), `teacher`, `meta_`, `labels`, `hyper`, `losses` (of these rows). One workgroup
/// per row.
pub static KD_FULL: Kernel = Kernel {
    name: "kd_full",
    revision: 1,
    wgsl: &[hyper::WGSL, LANES, include_str!("../exp_low.wgsl"), include_str!("full.wgsl"), include_str!("../lanes.wgsl")],
    bindings: &[update("logits"), read("teacher"), read("meta_"), read("labels"), read("hyper"), update("losses")],
    grid,
    cut,
    variants: &[Variant {
        suits: MANY_LANES.0,
        wgsl: &[hyper::WGSL, MANY_LANES.1, include_str!("../exp_low.wgsl"), include_str!("full.wgsl"), include_str!("../lanes.wgsl")],
        grid,
    }],
    scratch: NO_SCRATCH,
    cpu: kd_full,
};

fn grid(p: &Params) -> [u32; 3] {
    grid_1d(p.get::<Shape>().rows as usize, 1)
}

fn cut(p: &Params) -> Vec<Cut> {
    let s: Shape = p.get();
    let vocab = s.vocab as usize;
    let part = move |first: usize, count: usize| Params::new(&Shape { rows: count as u32, first: s.first + first as u32, ..s });
    vec![Cut { units: s.rows as usize, words: vec![vocab, vocab * s.taught as usize, 0, 0, 0, 0], part: Box::new(part) }]
}

/// What is asked of a row.
struct Row {
    w_kd: f32,
    w_ce: f32,
    label: usize,
    inv_tau: f32,
    by_teacher: bool,
}

fn kd_full(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [logits, teacher, meta, labels, hyper, losses] = bufs.take();
    let (vocab, first) = (s.vocab as usize, s.first as usize);
    let (teacher, meta, labels) = (teacher.f32(), &meta.f32()[4 * first..], &labels.i32()[first..]);
    let inv_tau = hyper.f32()[hyper::INV_TAU];
    let losses = &mut losses.f32_mut()[4 * first..];
    let rows = logits.f32_mut().par_chunks_mut(vocab).zip(losses.par_chunks_mut(4)).enumerate();
    rows.take(s.rows as usize).for_each(|(r, (z, losses))| {
        losses.fill(0.0);
        if labels[r] < 0 {
            z.fill(0.0);
            return;
        }
        let meta = &meta[4 * r..4 * r + 4];
        let label = labels[r] as usize;
        let row = Row { w_kd: meta[1], w_ce: meta[2] + meta[3], label, inv_tau, by_teacher: s.by_teacher == 1 };
        scratch::with(vocab, |e| {
            if s.taught == 0 {
                losses[1] = alone(z, e, row.w_ce, label);
            } else {
                let t = &teacher[r * vocab..(r + 1) * vocab];
                scratch::with(vocab, |et| losses.copy_from_slice(&taught(z, t, e, et, &row)));
            }
        });
    });
}

/// Σ f(a, b) over 16 lanes, then a tree.
#[inline(always)]
fn sum_pairs(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut acc = [0f32; WIDTH];
    let ((a, rest_a), (b, rest_b)) = (a.as_chunks::<WIDTH>(), b.as_chunks::<WIDTH>());
    for ((acc, a), b) in acc.iter_mut().zip(rest_a).zip(rest_b) {
        *acc = f(*a, *b);
    }
    for (a, b) in a.iter().zip(b) {
        for i in 0..WIDTH {
            acc[i] += f(a[i], b[i]);
        }
    }
    fold(acc)
}

crate::simd! {
    /// Cross-entropy of a row; `z` becomes its gradient.
    fn alone(z: &mut [f32], e: &mut [f32], w_ce: f32, label: usize) -> f32 {
        let top = max(z);
        for (e, z) in e.iter_mut().zip(&*z) {
            *e = exp(*z - top);
        }
        let total = sum(e, |x| x);
        let ce = ln(total) + top - z[label];
        let c = w_ce / total;
        for (z, e) in z.iter_mut().zip(&*e) {
            *z = c * e;
        }
        z[label] -= w_ce;
        ce
    }

    /// Losses of a row; `z` becomes its gradient, `e` and `et` are scratch.
    fn taught(z: &mut [f32], t: &[f32], e: &mut [f32], et: &mut [f32], row: &Row) -> [f32; 4] {
        let (top, top_t, inv_tau) = (max(z), max(t), row.inv_tau);
        let same = inv_tau == 1.0;
        for (e, z) in e.iter_mut().zip(&*z) {
            *e = exp(*z - top);
        }
        let total = sum(e, |x| x);
        let ce = ln(total) + top - z[row.label];
        for (et, t) in et.iter_mut().zip(t) {
            *et = exp((*t - top_t) * inv_tau);
        }
        let total_t = sum(et, |x| x);
        let all_t = if same { total_t } else { sum(t, |t| exp(t - top_t)) };
        let ce_t = ln(all_t) + top_t - t[row.label];
        // Σ t_j (ln t_j − ln p_j): the constants of both distributions come out of the sum.
        let tau_total = if same { total } else { sum(z, |z| exp((z - top) * inv_tau)) };
        for (z, t) in z.iter_mut().zip(t) {
            // From here on z holds the distance of both, to which the constants are added.
            *z = (*t - top_t) - (*z - top);
        }
        let apart = sum_pairs(et, z, |et, d| et * d) * inv_tau / total_t;
        let kl = apart + (ln(tau_total) - ln(total_t));
        let w_kd = if row.by_teacher { row.w_kd * ce_t } else { row.w_kd };
        let (ce_factor, s_factor, t_factor) = (row.w_ce / total, w_kd * inv_tau / tau_total, w_kd * inv_tau / total_t);
        if same {
            for ((z, e), et) in z.iter_mut().zip(&*e).zip(&*et) {
                *z = (ce_factor + s_factor).mul_add(*e, -t_factor * et);
            }
        } else {
            for (((z, e), et), t) in z.iter_mut().zip(&*e).zip(&*et).zip(t) {
                let shifted = (*t - top_t) - *z;
                *z = s_factor.mul_add(exp(shifted * inv_tau), ce_factor.mul_add(*e, -t_factor * et));
            }
        }
        z[row.label] -= row.w_ce;
        [if row.by_teacher { kl * ce_t } else { kl }, ce, kl, ce_t]
    }
}
