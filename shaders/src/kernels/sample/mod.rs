//! Next-token choice: argmax, and sampling with temperature and top-p.
//!
//! Sampling is defined without sorting, so that both devices agree: `p = softmax(z / temperature)`; the nucleus is
//! `{j : p_j ≥ θ}` for the largest float θ with `Σ_{p_j ≥ θ} p_j ≥ top_p` (bisection over the float bits of the
//! unnormalised `e_j = exp((z_j − max)/temperature)`, 32 steps, sums in a fixed order per device); then the first `j` in
//! ascending order with `Σ_{i ≤ j, in nucleus} e_i > u·Σ nucleus e`, the last member if rounding leaves none. `u` comes from the host.

mod cpu;

use bytemuck::{Pod, Zeroable};

use super::lanes::{LANES, MANY_LANES};
use crate::cut::along_first;
use crate::kernel::{Kernel, NO_SCRATCH, Variant, grid_1d, read, write};

/// Shapes: `logits [rows, vocab]`, `ids [rows] u32`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Shape {
    /// Tokens.
    pub rows: u32,
    /// Vocabulary.
    pub vocab: u32,
    /// Above 0 (sampling only).
    pub temperature: f32,
    /// In (0, 1] (sampling only).
    pub top_p: f32,
}

/// Index of the largest logit, lowest id among equals. Bindings: `logits`, `ids`. One workgroup per row.
pub static ARGMAX: Kernel = Kernel {
    name: "argmax",
    revision: 1,
    wgsl: &[LANES, include_str!("argmax.wgsl")],
    bindings: &[read("logits"), write("ids")],
    grid: |p| grid_1d(p.get::<Shape>().rows as usize, 1),
    cut: |p| along_first(p, &[p.get::<Shape>().vocab as usize, 1]),
    variants: &[Variant {
        suits: MANY_LANES.0,
        wgsl: &[MANY_LANES.1, include_str!("argmax.wgsl")],
        grid: |p| grid_1d(p.get::<Shape>().rows as usize, 1),
    }],
    scratch: NO_SCRATCH,
    cpu: cpu::argmax,
};

/// Bindings: `logits`, `u [rows]` in [0, 1), `ids`. One workgroup per row.
pub static SAMPLE: Kernel = Kernel {
    name: "sample",
    revision: 1,
    wgsl: &[LANES, include_str!("sample.wgsl"), include_str!("../lanes.wgsl")],
    bindings: &[read("logits"), read("u"), write("ids")],
    grid: |p| grid_1d(p.get::<Shape>().rows as usize, 1),
    cut: |p| along_first(p, &[p.get::<Shape>().vocab as usize, 1, 1]),
    variants: &[Variant {
        suits: MANY_LANES.0,
        wgsl: &[MANY_LANES.1, include_str!("sample.wgsl"), include_str!("../lanes.wgsl")],
        grid: |p| grid_1d(p.get::<Shape>().rows as usize, 1),
    }],
    scratch: NO_SCRATCH,
    cpu: cpu::sample,
};
