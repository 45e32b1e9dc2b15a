//! RMSNorm and activation quantisation in one pass over a row, with and without the gated activation before them: what
//! stands between two ternary products. The normed values are never stored.
//!
//! The same numbers, bit for bit on the CPU, as `gated`, `rmsnorm` and `act_quant` (absmax) one after the other.

mod cpu;

use bytemuck::{Pod, Zeroable};

use super::hyper;
use crate::cut::along_first;
use crate::kernel::{Kernel, NO_SCRATCH, grid_1d, read, write};

/// Shapes: `x, gate, up, y [rows, cols]`, `g [cols]`, `q [rows, words]`, `scales [rows]` of `act_quant::RowScale`,
/// `rstd [rows]`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Shape {
    /// Tokens.
    pub rows: u32,
    /// Features.
    pub cols: u32,
    /// Words of a packed row, at least `ceil(cols / 4)`.
    pub words: u32,
    /// Added to the mean square.
    pub eps: f32,
    /// Gated activation (0: SiLU, 1: ReLU²).
    pub act: u32,
}

/// Bindings: `x`, `g`, `hyper`, `q`, `scales`, `rstd`. One workgroup per row.
pub static NORM_QUANT: Kernel = Kernel {
    name: "norm_quant",
    revision: 1,
    wgsl: &[
        hyper::WGSL,
        include_str!("norm.wgsl"),
        include_str!("quantise.wgsl"),
        include_str!("../lanes.wgsl"),
        include_str!("../divide.wgsl"),
    ],
    bindings: &[read("x"), read("g"), read("hyper"), write("q"), write("scales"), write("rstd")],
    grid: |p| grid_1d(p.get::<Shape>().rows as usize, 1),
    cut: |p| {
        let s: Shape = p.get();
        along_first(p, &[s.cols as usize, 0, 0, s.words as usize, 2, 1])
    },
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: cpu::norm_quant,
};

/// Bindings: `gate`, `up`, `g`, `hyper`, `y` (the gated activation), `q`, `scales`, `rstd`. One workgroup per row.
pub static GATED_NORM_QUANT: Kernel = Kernel {
    name: "gated_norm_quant",
    revision: 1,
    wgsl: &[
        hyper::WGSL,
        include_str!("gated.wgsl"),
        include_str!("../gated/activate.wgsl"),
        include_str!("quantise.wgsl"),
        include_str!("../lanes.wgsl"),
        include_str!("../divide.wgsl"),
    ],
    bindings: &[read("gate"), read("up"), read("g"), read("hyper"), write("y"), write("q"), write("scales"), write("rstd")],
    grid: |p| grid_1d(p.get::<Shape>().rows as usize, 1),
    cut: |p| {
        let s: Shape = p.get();
        let cols = s.cols as usize;
        along_first(p, &[cols, cols, 0, 0, cols, s.words as usize, 2, 1])
    },
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: cpu::gated_norm_quant,
};
