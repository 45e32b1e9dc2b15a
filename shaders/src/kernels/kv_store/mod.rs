//! Appends keys or values to a cache: `cache[r / q_len, pos[r], :] = x[r, :]`.

mod cpu;

use bytemuck::{Pod, Zeroable};

use crate::kernel::{Kernel, grid_1d, read, update};

/// Shapes: `x [rows, cols]`, `pos [rows] u32`, `cache [sequences, kv_len, cols]`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Shape {
    /// Tokens.
    pub rows: u32,
    /// Rows of one sequence.
    pub q_len: u32,
    /// Capacity of one sequence.
    pub kv_len: u32,
    /// KV heads · head size.
    pub cols: u32,
}

/// Bindings: `x`, `pos`, `cache` (updated). One thread per element of `x`.
pub static KV_STORE: Kernel = Kernel {
    name: "kv_store",
    revision: 1,
    wgsl: &[include_str!("kernel.wgsl")],
    bindings: &[read("x"), read("pos"), update("cache")],
    grid: |p| {
        let s: Shape = p.get();
        grid_1d((s.rows * s.cols) as usize, 256)
    },
    variants: &[],
    cpu: cpu::kv_store,
};
