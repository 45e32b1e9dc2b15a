//! Global-norm gradient clipping with a guard against NaN and Inf.
//!
//! `sum_sq` writes one partial per 16,384 elements into a shared buffer; `clip_finish` adds them up:
//! `norm = √Σ · INV_LOSS_SCALE`, `factor = min(1, clip/(norm + 1e-6)) · INV_LOSS_SCALE`, `skip = 1` if the norm is not finite
//! (then `factor = 0`). Gradients are a loss scale too large (1 without one): `norm` is the true one, and `factor` times a
//! gradient the true clipped gradient.

pub(crate) mod cpu;

use bytemuck::{Pod, Zeroable};

use super::hyper;
use crate::cut::{self, along_groups};
use crate::kernel::{Kernel, NO_SCRATCH, Params, grid_1d, read, update, write};

/// Elements behind one partial sum.
pub const BLOCK: usize = 16_384;

/// Partials that `n` elements need.
pub const fn partials(n: usize) -> usize {
    n.div_ceil(BLOCK)
}

/// Squares of `x [n]` into `partials[offset ..]`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct SumSq {
    /// Elements.
    pub n: u32,
    /// First partial.
    pub offset: u32,
}

/// Bindings: `x`, `partials` (updated: only its own entries). One workgroup per block.
pub static SUM_SQ: Kernel = Kernel {
    name: "sum_sq",
    revision: 1,
    wgsl: &[include_str!("sum_sq.wgsl"), include_str!("../lanes.wgsl")],
    bindings: &[read("x"), update("partials")],
    grid: |p| grid_1d(p.get::<SumSq>().n as usize, BLOCK),
    cut: |p| {
        let s: SumSq = p.get();
        let partial = move |first: u32| s.offset + first / BLOCK as u32;
        along_groups(s.n, BLOCK, &[BLOCK, 0], move |first, n| Params::new(&SumSq { n, offset: partial(first) }))
    },
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: cpu::sum_sq,
};

/// Number of partials.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Finish {
    /// Partials to add.
    pub n: u32,
}

/// Bindings: `partials`, `hyper` (CLIP, INV_LOSS_SCALE), `clip [4]` = (norm, factor, skip as 0.0 or 1.0, 0). One workgroup.
pub static CLIP_FINISH: Kernel = Kernel {
    name: "clip_finish",
    revision: 2,
    wgsl: &[hyper::WGSL, include_str!("finish.wgsl"), include_str!("../lanes.wgsl")],
    bindings: &[read("partials"), read("hyper"), write("clip")],
    grid: |_| [1, 1, 1],
    // The sum of all partials, a word for each 16,384 parameters.
    cut: cut::NEVER,
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: cpu::finish,
};
