//! AdamW with decoupled weight decay (arXiv 1711.05101), one pass over parameter, gradient and both moments.
//!
//! With `g' = g·clip.factor`: `w ← w(1 − lr·wd·decay)`, `m ← β1 m + (1−β1) g'`, `v ← β2 v + (1−β2) g'²`,
//! `w ← w − lr·(m/bc1)/(√(v/bc2) + eps)`. Nothing changes when `clip.skip` is set.
//! `hyper`: LR, BETA1, BETA2, EPS, WEIGHT_DECAY, BIAS1 = 1 − β1^t, BIAS2 = 1 − β2^t.

mod cpu;

use bytemuck::{Pod, Zeroable};

use crate::kernel::{Kernel, grid_1d, read, update};

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
    wgsl: &[include_str!("kernel.wgsl")],
    bindings: &[read("hyper"), read("clip"), read("g"), update("w"), update("m"), update("v")],
    grid: |p| grid_1d(p.get::<Shape>().n as usize, 256),
    variants: &[],
    cpu: cpu::adamw,
};
