//! Packed ternary weights with scales in groups of 64, times int8 activations that have a step for each row or for each
//! block of 64: integers within a group, one float multiply-add for each of them.
//!
//! With `d` the exact sum of `q·(code − 1)` over a group (or over one word of 16 in the kernel for a few rows), `w` its
//! weights' scale and `s` its activations' step:
//! steps by block: `v ← fma(f32(d)·s, w, v)`, `y = v`; steps by row: `v ← fma(f32(d), w, v)`, `y = v · step`.
//! For many rows `v` is one chain over ascending groups; for a few rows it has 16 lanes, lane `l` for the words
//! `l, l + 16, …` of a row, added as a tree: what comes out for a row never depends on the others.

mod blocks;
pub(crate) mod cpu;
mod few;
mod many;
mod product;
#[cfg(target_arch = "x86_64")]
mod x86;

use bytemuck::{Pod, Zeroable};

use crate::cut::{Cut, along_first};
use crate::kernel::{Kernel, Params, grid_1d, read, update};
use crate::kernels::act_quant::blocks::BLOCK;
use crate::kernels::ternary::packed_words;

/// Shapes: `q [rows, 4·ceil(cols/16)]`, `steps` as `by_row` says, `codes [outs, ceil(cols/16)]`, `scale` as `groups` says (see
/// `ternary::groups`), `y [rows, outs]`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Shape {
    /// Tokens.
    pub rows: u32,
    /// Output features.
    pub outs: u32,
    /// Input features.
    pub cols: u32,
    /// 1: `y += …`, 0: `y = …`.
    pub add: u32,
    /// Scales of a row of weights: 1, or `cols / 64`.
    pub groups: u32,
    /// 1: `steps [rows]` of `act_quant::RowScale`, 0: `[rows, ceil(cols/64)]` floats.
    pub by_row: u32,
}

impl Shape {
    /// Words of a row's steps.
    fn step_words(&self) -> usize {
        if self.by_row == 1 { 2 } else { (self.cols as usize).div_ceil(BLOCK) }
    }
}

/// Bindings: `q`, `steps`, `codes`, `scale`, `y`. A workgroup of 64 threads makes 16 rows × 64 outputs.
pub static TERNARY_BLOCKS_GEMM: Kernel = Kernel {
    name: "ternary_blocks_gemm",
    revision: 1,
    wgsl: &[
        include_str!("common.wgsl"),
        include_str!("../ternary/planes.wgsl"),
        include_str!("kernel.wgsl"),
        include_str!("../half_value.wgsl"),
    ],
    bindings: &[read("q"), read("steps"), read("codes"), read("scale"), update("y")],
    grid: |p| {
        let s: Shape = p.get();
        [s.outs.div_ceil(64), s.rows.div_ceil(16), 1]
    },
    cut: rows,
    variants: &[],
    scratch: cpu::scratch,
    cpu: cpu::many,
};

/// The same for a few rows (decoding); workgroups of 4 outputs, 16 lanes for each.
pub static TERNARY_BLOCKS_GEMV: Kernel = Kernel {
    name: "ternary_blocks_gemv",
    revision: 1,
    wgsl: &[
        include_str!("common.wgsl"),
        include_str!("../ternary/planes.wgsl"),
        include_str!("gemv.wgsl"),
        include_str!("../half_value.wgsl"),
    ],
    bindings: TERNARY_BLOCKS_GEMM.bindings,
    grid: |p| grid_1d(p.get::<Shape>().outs as usize, 4),
    cut: rows,
    variants: &[],
    scratch: cpu::scratch,
    cpu: cpu::few,
};

/// Cut along the rows of activations.
fn rows(p: &Params) -> Vec<Cut> {
    let s: Shape = p.get();
    along_first(p, &[4 * packed_words(s.cols as usize), s.step_words(), 0, 0, s.outs as usize])
}
