//! Walsh–Hadamard transform of every block of a row, in place: outliers are spread over their block, so that few bits hold a row.
//!
//! `y = H x / √n` for each `n = block` values, with `H[i][j] = (−1)^popcount(i & j)` (Sylvester's order). It is its own inverse
//! and its own gradient.

mod cpu;

use bytemuck::{Pod, Zeroable};

use crate::kernel::{Kernel, grid_1d, update};

/// Largest block.
pub const MOST: u32 = 256;

/// Shapes: `x [rows, cols]`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Shape {
    /// Blocks in all.
    pub blocks: u32,
    /// Values of a block: a power of two, at most [`MOST`], that divides a row.
    pub block: u32,
    /// `1/√block`.
    pub scale: f32,
}

impl Shape {
    /// For rows of `cols` values: the largest block that divides them.
    pub fn new(rows: usize, cols: usize) -> Self {
        let block = MOST.min(1 << cols.trailing_zeros().min(31));
        Self { blocks: (rows * (cols / block as usize)) as u32, block, scale: (1.0 / f64::from(block).sqrt()) as f32 }
    }
}

/// Bindings: `x` (updated). One workgroup per block.
pub static HADAMARD: Kernel = Kernel {
    name: "hadamard",
    revision: 1,
    wgsl: &[include_str!("kernel.wgsl")],
    bindings: &[update("x")],
    grid: |p| grid_1d(p.get::<Shape>().blocks as usize, 1),
    variants: &[],
    cpu: cpu::hadamard,
};
