//! Activation quantisation, per token, to signed bytes packed four to a u32 (element `4 i + j` in byte `j`, zero padded).
//!
//! By the largest value of a row (absmax): `step = max(max|x|, 1e-5) / qmax`, `q = round_half_even(x / step)`, `|q| ≤ qmax`.
//! `qmax` is `hyper[QMAX]` (127 for A8, 7 for A4), so that the flip is a changed number, not a changed program.

pub mod blocks;
pub(crate) mod cpu;
pub mod values;

use bytemuck::{Pod, Zeroable};

use super::hyper;
use crate::cut::along_first;
use crate::kernel::{Kernel, NO_SCRATCH, grid_1d, read, write};

/// Words of a packed row.
pub const fn packed_words(cols: usize) -> usize {
    cols.div_ceil(4)
}

/// What belongs to a row of codes: two words of a buffer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
pub struct RowScale {
    /// Value of a code of 1.
    pub step: f32,
    /// Sum of the row's codes: what a product with codes that are one too large takes back.
    pub sum: i32,
}

/// Shapes: `x [rows, cols]`, `q [rows, words] u32`, `scales [rows]` of [`RowScale`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Shape {
    /// Tokens.
    pub rows: u32,
    /// Features.
    pub cols: u32,
    /// Words of a packed row: at least `ceil(cols / 4)`; the ternary product wants `4 · ceil(cols / 16)`.
    pub words: u32,
}

/// Bindings: `x`, `hyper`, `q`, `scales` ([`RowScale`]). One workgroup per row.
pub static ACT_QUANT: Kernel = Kernel {
    name: "act_quant",
    revision: 1,
    wgsl: &[hyper::WGSL, include_str!("kernel.wgsl"), include_str!("../lanes.wgsl"), include_str!("../divide.wgsl")],
    bindings: &[read("x"), read("hyper"), write("q"), write("scales")],
    grid: |p| grid_1d(p.get::<Shape>().rows as usize, 1),
    cut: |p| {
        let s: Shape = p.get();
        along_first(p, &[s.cols as usize, 0, s.words as usize, 2])
    },
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: cpu::act_quant,
};
