//! Token embedding: gather and its scatter gradient.
//!
//! `out[r, c] = table[ids[r], c]`; the gradient adds rows of `dx` in ascending order of `r`, without float atomics:
//! the host gives, for every token id `v`, the rows that hold it: `order[starts[v] .. starts[v + 1]]`.

mod cpu;

use bytemuck::{Pod, Zeroable};

use crate::kernel::{Kernel, grid_1d, read, update, write};

/// Shapes: `table [vocab, cols]`, `ids [rows]`, `out [rows, cols]`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Shape {
    /// Rows of the batch.
    pub rows: u32,
    /// Hidden size.
    pub cols: u32,
    /// Rows of the table.
    pub vocab: u32,
}

/// Bindings: `ids [rows] u32`, `table [vocab, cols]`, `out [rows, cols]`. One thread per element of `out`.
pub static EMBED: Kernel = Kernel {
    name: "embed",
    revision: 1,
    wgsl: &[include_str!("gather.wgsl")],
    bindings: &[read("ids"), read("table"), write("out")],
    grid: |p| {
        let s: Shape = p.get();
        grid_1d(s.rows as usize * s.cols as usize, 256)
    },
    variants: &[],
    cpu: cpu::gather,
};

/// As [`EMBED`] from a table of float16, two in a word (the even column low); `cols` is even.
pub static EMBED_HALF: Kernel = Kernel {
    name: "embed_half",
    revision: 1,
    wgsl: &[include_str!("../half_value.wgsl"), include_str!("../half.wgsl"), include_str!("gather_half.wgsl")],
    bindings: &[read("ids"), read("table"), write("out")],
    grid: |p| {
        let s: Shape = p.get();
        grid_1d(s.rows as usize * s.cols as usize / 2, 256)
    },
    variants: &[],
    cpu: cpu::gather_half,
};

/// Bindings: `starts [vocab + 1] u32`, `order [rows] u32`, `dx [rows, cols]`, `dtable [vocab, cols]` (added to).
/// One thread per element of `dtable`.
pub static EMBED_GRAD: Kernel = Kernel {
    name: "embed_grad",
    revision: 1,
    wgsl: &[include_str!("scatter.wgsl")],
    bindings: &[read("starts"), read("order"), read("dx"), update("dtable")],
    grid: |p| {
        let s: Shape = p.get();
        grid_1d(s.vocab as usize * s.cols as usize, 256)
    },
    variants: &[],
    cpu: cpu::scatter,
};
