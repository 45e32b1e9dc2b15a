//! AdamW with decoupled weight decay (arXiv 1711.05101), one pass over parameter, gradient and both moments.
//!
//! With `g' = g·clip.factor`: `w ← w(1 − lr·wd·decay)`, `m ← β1 m + (1−β1) g'`, `v ← β2 v + (1−β2) g'²`,
//! `w ← w − lr·(m/bc1)/(√(v/bc2) + eps)`. Nothing changes when `clip.skip` is set.
//!
//! `adamw_int8` holds both moments in one byte each, with scales per block of 256 elements, after block-wise 8-bit
//! optimizers (arXiv 2110.02861): a quarter of the memory. Codes are the square root of |m| and the fourth root of v as a
//! share of the block's largest, so that small moments keep a relative precision that a linear code would not give them,
//! and a v above 0 never becomes 0. The scale is a float, so that moments that all decay together decay exactly.
//!
//! `hyper`: LR, BETA1, BETA2, EPS, WEIGHT_DECAY, BIAS1 = 1 − β1^t, BIAS2 = 1 − β2^t.

mod cpu;
mod int8;

use bytemuck::{Pod, Zeroable};

use super::hyper;
use crate::cut::{along_first, along_groups};
use crate::kernel::{Kernel, NO_SCRATCH, Params, grid_1d, read, update};

/// Elements whose one-byte moments share two scales.
pub const BLOCK: usize = 256;

/// Words of one-byte moments, and of their scales, for `n` elements.
pub const fn int8_words(n: usize) -> (usize, usize) {
    (n.div_ceil(BLOCK) * (BLOCK / 4), n.div_ceil(BLOCK) * 2)
}

/// All tensors hold `n` floats.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Shape {
    /// Elements.
    pub n: u32,
    /// 1.0 to decay, 0.0 for norms, scales and embeddings.
    pub decay: f32,
}

/// Bindings: `hyper`, `clip`, `g`, `w`, `m`, `v` (the last three updated). One thread per element.
pub static ADAMW: Kernel = Kernel {
    name: "adamw",
    revision: 1,
    wgsl: &[hyper::WGSL, include_str!("head.wgsl"), include_str!("kernel.wgsl")],
    bindings: &[read("hyper"), read("clip"), read("g"), update("w"), update("m"), update("v")],
    grid: |p| grid_1d(p.get::<Shape>().n as usize, 256),
    cut: |p| along_first(p, &[0, 0, 1, 1, 1, 1]),
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: cpu::adamw,
};

/// Bindings: `hyper`, `clip`, `g`, `w`, `m`, `v`, `scales` (the last four updated; see [`int8_words`]). One workgroup per
/// block.
pub static ADAMW_INT8: Kernel = Kernel {
    name: "adamw_int8",
    revision: 1,
    wgsl: &[hyper::WGSL, include_str!("head.wgsl"), include_str!("int8.wgsl"), include_str!("../lanes.wgsl")],
    bindings: &[read("hyper"), read("clip"), read("g"), update("w"), update("m"), update("v"), update("scales")],
    grid: |p| grid_1d(p.get::<Shape>().n as usize, BLOCK),
    cut: |p| {
        let s: Shape = p.get();
        let (bytes, scales) = int8_words(BLOCK);
        along_groups(s.n, BLOCK, &[0, 0, BLOCK, BLOCK, bytes, bytes, scales], move |_, n| Params::new(&Shape { n, ..s }))
    },
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: int8::adamw_int8,
};
