//! Distillation loss of one row of logits and its gradient, in place: KL(teacher ‖ student) over Top-K + Other at
//! temperature τ, plus cross-entropy at τ = 1.
//!
//! Teacher buckets: `t = softmax([targets, meta.other])`, which the host has tempered: `targets` are logprobs / τ, `other`
//! is the tail's log-sum-exp at τ; `-1` ids are absent buckets. Student: `p = softmax(z / τ)`,
//! `s_i = p[topk_ids[i]]`, `s_other = Σ` of the remaining `p`, summed directly (no cancellation), `ln s_other ≥ −80`.
//! `kl = Σ_b t_b (ln t_b − ln s_b)`; `dz_j = (w_kd/τ)(p_j − t_b(j)·p_j/s_b(j)) + (w_ce + w_format)(softmax(z)_j − [j = label])`.
//! A row with `label < 0` gets zero gradient and zero losses; a row with `w_kd = 0` skips the KL; τ = 1/`hyper[INV_TAU]`.

mod cpu;
pub mod full;

use bytemuck::{Pod, Zeroable};

use super::hyper;
use super::lanes::{LANES, MANY_LANES};
use crate::cut::{self, along_first};
use crate::kernel::{Kernel, NO_SCRATCH, Variant, grid_1d, read, update, write};

/// Shapes: `logits [rows, vocab]`, `topk_ids [rows, k] i32` (no id twice in a row), `targets [rows, k]`,
/// `meta [rows, 4]` = (other, w_kd, w_ce, w_format), `labels [rows] i32`, `losses [rows, 4]` = (kl, ce, 0, 0),
/// `kept [rows, k]` (the candidates' logits while the kernel works; nothing else reads it).
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Shape {
    /// Tokens.
    pub rows: u32,
    /// Vocabulary.
    pub vocab: u32,
    /// Buckets stored, any number of them; 0 for cross-entropy only (the buffers then hold one word).
    pub k: u32,
}

/// Bindings: `logits` (becomes the gradient), `topk_ids`, `targets`, `meta_`, `labels`, `hyper`, `losses`, `kept`.
/// One workgroup per row.
pub static KD_LOSS: Kernel = Kernel {
    name: "kd_loss",
    revision: 2,
    wgsl: &[hyper::WGSL, LANES, include_str!("../exp_low.wgsl"), include_str!("kernel.wgsl"), include_str!("../lanes.wgsl")],
    bindings: &[
        update("logits"),
        read("topk_ids"),
        read("targets"),
        read("meta_"),
        read("labels"),
        read("hyper"),
        write("losses"),
        write("kept"),
    ],
    grid: |p| grid_1d(p.get::<Shape>().rows as usize, 1),
    cut: |p| {
        let Shape { vocab, k, .. } = p.get();
        let (vocab, k) = (vocab as usize, k as usize);
        along_first(p, &[vocab, k, k, 4, 1, 0, 4, k])
    },
    variants: &[Variant {
        suits: MANY_LANES.0,
        wgsl: &[hyper::WGSL, MANY_LANES.1, include_str!("../exp_low.wgsl"), include_str!("kernel.wgsl"), include_str!("../lanes.wgsl")],
        grid: |p| grid_1d(p.get::<Shape>().rows as usize, 1),
    }],
    scratch: NO_SCRATCH,
    cpu: cpu::kd_loss,
};

/// `out += (Σ w_kd·kl, Σ w_ce·ce, Σ w_format·ce, rows with a non-finite loss)`, rows in a fixed order.
/// Bindings: `losses`, `meta_`, `out [4]` (added to). One workgroup.
pub static LOSS_SUM: Kernel = Kernel {
    name: "loss_sum",
    revision: 1,
    wgsl: &[include_str!("sum.wgsl"), include_str!("../lanes.wgsl")],
    bindings: &[read("losses"), read("meta_"), update("out")],
    grid: |_| [1, 1, 1],
    // The sum over all rows, four words for each.
    cut: cut::NEVER,
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: cpu::loss_sum,
};
