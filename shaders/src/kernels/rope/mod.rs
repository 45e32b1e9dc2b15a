//! Rotary position embedding, half rotation (Hugging Face Llama), in place; the inverse rotation is its gradient.
//!
//! With `h = head_dim / 2`, angle tables from the host in f64 (`table [positions, head_dim]`: h cosines then h sines):
//! `y[i] = x[i]·cos_i − x[i + h]·sin_i`, `y[i + h] = x[i + h]·cos_i + x[i]·sin_i`; inverse: sin negated.

mod cpu;

use bytemuck::{Pod, Zeroable};

use crate::cut::along_first;
use crate::kernel::{Kernel, NO_SCRATCH, grid_1d, read, update};

/// Shapes: `x [rows, heads·head_dim]`, `pos [rows] u32`, `table [positions, head_dim]`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Shape {
    /// Tokens.
    pub rows: u32,
    /// Heads in a row.
    pub heads: u32,
    /// Size of a head, even.
    pub head_dim: u32,
    /// 1: rotate back.
    pub inverse: u32,
}

/// Bindings: `pos`, `table`, `x` (updated). One thread per pair.
pub static ROPE: Kernel = Kernel {
    name: "rope",
    revision: 1,
    wgsl: &[include_str!("kernel.wgsl")],
    bindings: &[read("pos"), read("table"), update("x")],
    grid: |p| {
        let s: Shape = p.get();
        grid_1d((s.rows * s.heads * (s.head_dim / 2)) as usize, 256)
    },
    cut: |p| {
        let s: Shape = p.get();
        along_first(p, &[1, 0, (s.heads * s.head_dim) as usize])
    },
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: cpu::rope,
};
