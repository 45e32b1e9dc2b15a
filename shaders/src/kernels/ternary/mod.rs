//! Ternary weights: absmean (BitNet b1.58, arXiv 2402.17764) and threshold (0.7·mean|W|, learned scale per output).
//!
//! Packed layout, 2 bits a weight, codes 0, 1, 2 for −1, 0, +1: `codes [rows, ceil(cols / 16)] u32`. Word `i` of a row
//! holds elements `16 i … 16 i + 15`; element `16 i + 4 p + j` sits in byte `j` at bits `2 p`, so that
//! `(word >> 2 p) & 0x03030303` is four codes in the byte order of four packed activations. Missing elements hold code 1.

pub(crate) mod cpu;
pub mod groups;
pub mod soften;

use bytemuck::{Pod, Zeroable};

use crate::cut::{self, along_first};
use crate::kernel::{Kernel, NO_SCRATCH, grid_1d, read, update, write};

/// Words of a packed row.
pub const fn packed_words(cols: usize) -> usize {
    cols.div_ceil(16)
}

/// Shapes: `w [rows, cols]`, `partial [rows]`, `mean [1]`, `codes [rows, ceil(cols/16)]`, `scale [rows]`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Shape {
    /// Output features.
    pub rows: u32,
    /// Input features.
    pub cols: u32,
    /// 0: absmean, 1: threshold.
    pub rule: u32,
}

/// `partial[r] = Σ_c |w[r, c]|`. Bindings: `w`, `partial`. One workgroup per row.
pub static ROW_ABS_SUM: Kernel = Kernel {
    name: "row_abs_sum",
    revision: 1,
    wgsl: &[include_str!("row_abs_sum.wgsl"), include_str!("../lanes.wgsl")],
    bindings: &[read("w"), write("partial_sums")],
    grid: |p| grid_1d(p.get::<Shape>().rows as usize, 1),
    cut: |p| along_first(p, &[p.get::<Shape>().cols as usize, 1]),
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: cpu::row_abs_sum,
};

/// `mean[0] = Σ_r partial[r] / (rows · cols)`. Bindings: `partial`, `mean`. One workgroup.
pub static ABS_MEAN: Kernel = Kernel {
    name: "abs_mean",
    revision: 1,
    wgsl: &[include_str!("abs_mean.wgsl"), include_str!("../lanes.wgsl"), include_str!("../divide.wgsl")],
    bindings: &[read("partial_sums"), write("mean")],
    grid: |_| [1, 1, 1],
    // The sum of a word for each row.
    cut: cut::NEVER,
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: cpu::abs_mean,
};

/// Rule 0: `s = max(mean, 1e-5)`, `q = clamp(round_half_even(w / s), −1, 1)`, `scale[r] = s`.
/// Rule 1: `q = sign(w)·(|w| > 0.7·mean)`, `scale[r] = 1` (the learned scale is a buffer of its own).
/// Bindings: `w`, `mean`, `codes`, `scale`. One thread per packed word.
pub static TERNARISE: Kernel = Kernel {
    name: "ternarise",
    revision: 1,
    wgsl: &[include_str!("ternarise.wgsl"), include_str!("../divide.wgsl")],
    bindings: &[read("w"), read("mean"), write("codes"), write("scale")],
    grid: |p| {
        let s: Shape = p.get();
        grid_1d(s.rows as usize * packed_words(s.cols as usize), 256)
    },
    cut: |p| {
        let cols = p.get::<Shape>().cols as usize;
        along_first(p, &[cols, 0, packed_words(cols), 1])
    },
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: cpu::ternarise,
};

/// Gradients of the threshold rule from the gradient of the scaled weight, held in `dw` (`dWs = dyᵀ·x`):
/// `dscale[r] += Σ_c dWs·q`, `dw[r, c] ← dWs · scale[r]`. Bindings: `codes`, `scale`, `dw` (updated), `dscale` (added to).
/// One workgroup per row.
pub static THRESHOLD_GRAD: Kernel = Kernel {
    name: "threshold_grad",
    revision: 1,
    wgsl: &[include_str!("threshold_grad.wgsl"), include_str!("../lanes.wgsl")],
    bindings: &[read("codes"), read("scale"), update("dw"), update("dscale")],
    grid: |p| grid_1d(p.get::<Shape>().rows as usize, 1),
    cut: |p| {
        let cols = p.get::<Shape>().cols as usize;
        along_first(p, &[packed_words(cols), 1, cols, 1])
    },
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: cpu::threshold_grad,
};
