//! Attention relations (MiniLMv2, arXiv 2012.15828): how the rows of a sequence relate to each other in the student and in
//! the teacher, and the KL divergence between the two.
//!
//! `x_s` and `x_t` are queries, keys or values of one layer, split into the same number of relation heads, of `d_s` and `d_t`
//! floats. For head `a` and a real row `t`, over the real rows `u` of its sequence (in both directions, `t` itself too):
//! `S_s[t, u] = x_s[t, a]·x_s[u, a]/√d_s`, `p_s = softmax_u S_s`, the teacher's likewise;
//! `kl[t] = Σ_a Σ_u p_t (ln p_t − ln p_s)`. Scores are symmetric, weights are not: a row moves those of the others as well.
//! `dx_s[t, a] += 1/√d_s Σ_u [w_t (p_s(t, u) − p_t(t, u)) + w_u (p_s(u, t) − p_t(u, t))] x_s[u, a]`.
//! Rows with mask 0 are read by nothing and get no gradient. A score that is not finite makes the KL and the statistics of
//! its rows NaN, and so the gradient of its head in its sequence.

mod cpu;

use bytemuck::{Pod, Zeroable};

use crate::cut::{Cut, along_sequences};
use crate::kernel::{Kernel, NO_SCRATCH, Params, grid_1d, read, update, write};

/// Shapes: `x_s, dx [rows, width_s]`, `x_t [rows, width_t]`, `mask [rows] u32`, `stats [rows, heads, 2]` = (lse_s, lse_t),
/// `losses [rows, 4]` = (kl, 0, 0, 0), `meta [rows, 4]` = (_, w, _, _).
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Shape {
    /// Tokens in the batch.
    pub rows: u32,
    /// Rows of one sequence.
    pub q_len: u32,
    /// Floats of a student's row.
    pub width_s: u32,
    /// Floats of a teacher's row.
    pub width_t: u32,
    /// Relation heads; they divide both widths.
    pub heads: u32,
    /// 1/√d_s.
    pub scale_s: f32,
    /// 1/√d_t.
    pub scale_t: f32,
}

impl Shape {
    /// The shape with its scales: tokens, rows of a sequence, widths of student and teacher, relation heads.
    pub fn new(rows: u32, q_len: u32, [width_s, width_t]: [u32; 2], heads: u32) -> Self {
        let [scale_s, scale_t] = [width_s, width_t].map(|width| (1.0 / f64::from(width / heads).sqrt()) as f32);
        Self { rows, q_len, width_s, width_t, heads, scale_s, scale_t }
    }
}

/// Whole sequences, with some words of a row in each binding.
fn sequences(p: &Params, words: impl Fn(&Shape) -> Vec<u32>) -> Vec<Cut> {
    let s: Shape = p.get();
    let words: Vec<usize> = words(&s).into_iter().map(|of_row| (of_row * s.q_len) as usize).collect();
    vec![along_sequences(s.rows, s.q_len, &words, move |_, rows| Params::new(&Shape { rows, ..s }))]
}

/// The KL of each row, and what the gradient needs of both softmaxes. Bindings: `x_s`, `x_t`, `mask`, `stats`, `losses`
/// (for `loss_sum`, with weights as in `meta`). One workgroup per row.
pub static RELATION: Kernel = Kernel {
    name: "relation",
    revision: 1,
    wgsl: &[include_str!("scores.wgsl"), include_str!("forward.wgsl"), include_str!("../lanes.wgsl")],
    bindings: &[read("x_s"), read("x_t"), read("mask"), write("stats"), write("losses")],
    grid: |p| grid_1d(p.get::<Shape>().rows as usize, 1),
    cut: |p| sequences(p, |s| vec![s.width_s, s.width_t, 1, 2 * s.heads, 4]),
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: cpu::forward,
};

/// The gradient of `Σ_t w_t·kl[t]`. Bindings: `x_s`, `x_t`, `mask`, `stats`, `meta_`, `dx` (added to). One workgroup per
/// (row, head).
pub static RELATION_GRAD: Kernel = Kernel {
    name: "relation_grad",
    revision: 1,
    wgsl: &[include_str!("scores.wgsl"), include_str!("grad.wgsl"), include_str!("../lanes.wgsl")],
    bindings: &[read("x_s"), read("x_t"), read("mask"), read("stats"), read("meta_"), update("dx")],
    grid: |p| {
        let s: Shape = p.get();
        grid_1d((s.rows * s.heads) as usize, 1)
    },
    cut: |p| sequences(p, |s| vec![s.width_s, s.width_t, 1, 2 * s.heads, 4, s.width_s]),
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: cpu::grad,
};
