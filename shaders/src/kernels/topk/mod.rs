//! Top-K + Other of a row of logits, and what scoring needs of it.
//!
//! `logprob_j = z_j − lse(z)`; the K largest in falling order (ties: lower id first); `other[r, 0]` is the log of the
//! summed probability of all the rest, summed directly; `other[r, i]` for i = 1..=n_tau is the tail's log-sum-exp at
//! `tau_i`: `ln Σ_{j not in Top-K} exp(logprob_j / tau_i)`. Empty tails give −80.

mod cpu;

use bytemuck::{Pod, Zeroable};

use crate::cut::along_first;
use crate::kernel::{Kernel, NO_SCRATCH, grid_1d, read, write};

/// Shapes: `logits [rows, vocab]`, `ids [rows, k] u32`, `logprobs [rows, k]`, `other [rows, 1 + n_tau]`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Shape {
    /// Tokens.
    pub rows: u32,
    /// Vocabulary.
    pub vocab: u32,
    /// Kept, at most vocab.
    pub k: u32,
    /// Temperatures, at most 3.
    pub n_tau: u32,
    /// Temperatures.
    pub taus: [f32; 3],
}

/// Bindings: `logits`, `ids`, `logprobs`, `other`. One workgroup per row.
pub static TOPK: Kernel = Kernel {
    name: "topk",
    revision: 2,
    wgsl: &[include_str!("../exp_low.wgsl"), include_str!("kernel.wgsl"), include_str!("../lanes.wgsl")],
    bindings: &[read("logits"), write("ids"), write("logprobs"), write("other")],
    grid: |p| grid_1d(p.get::<Shape>().rows as usize, 1),
    cut: |p| {
        let s: Shape = p.get();
        along_first(p, &[s.vocab as usize, s.k as usize, s.k as usize, 1 + s.n_tau as usize])
    },
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: cpu::topk,
};
