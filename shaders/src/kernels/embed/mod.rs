//! Token embedding: gather and its scatter gradient.
//!
//! `out[r, c] = table[ids[r], c]`; the gradient adds rows of `dx` in ascending order of `r`, without float atomics:
//! the host gives, for every token id `v`, the rows that hold it: `order[starts[v] .. starts[v + 1]]`.

mod cpu;

use bytemuck::{Pod, Zeroable};

use crate::cut::{Cut, along_first};
use crate::kernel::{Kernel, NO_SCRATCH, Params, grid_1d, read, update, write};
use crate::kernels::ternary::groups::row_scale_words;
use crate::kernels::ternary::packed_words;

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

/// A dispatch, or a part of one.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Part {
    shape: Shape,
    /// The token of the table's first row, where a part of it is bound.
    first: u32,
    /// The batch's row that `dx` begins with, where a part of it is bound.
    row: u32,
}

/// Cut along rows of the table, of which a part knows the first one's token.
fn tokens(part: Part, words: &[usize]) -> Cut {
    let of = move |first, count| {
        let shape = Shape { vocab: count as u32, ..part.shape };
        Params::new(&Part { shape, first: part.first + first as u32, ..part })
    };
    Cut { units: part.shape.vocab as usize, words: words.to_vec(), part: Box::new(of) }
}

/// Cut along rows of the batch, or of the table: a part writes what its tokens give.
fn gather(p: &Params, values_a_word: usize) -> Vec<Cut> {
    let part: Part = p.get();
    let cols = part.shape.cols as usize;
    let rows = along_first(p, &[1, 0, cols]);
    rows.into_iter().chain([tokens(part, &[0, cols / values_a_word, 0])]).collect()
}

/// Cut along rows of the batch, of which a part knows the first, or of the table.
fn scatter(p: &Params) -> Vec<Cut> {
    let part: Part = p.get();
    let (rows, cols) = (part.shape.rows as usize, part.shape.cols as usize);
    let of = move |first, count| {
        let shape = Shape { rows: count as u32, ..part.shape };
        Params::new(&Part { shape, row: part.row + first as u32, ..part })
    };
    vec![Cut { units: rows, words: vec![0, 0, cols, 0], part: Box::new(of) }, tokens(part, &[0, 0, 0, cols])]
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
    cut: |p| gather(p, 1),
    variants: &[],
    scratch: NO_SCRATCH,
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
    cut: |p| gather(p, 2),
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: cpu::gather_half,
};

/// A gather from a packed ternary table.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct TernaryShape {
    /// Rows of the batch, columns and rows of the table.
    pub shape: Shape,
    /// Of a part; 0.
    part: [u32; 2],
    /// Scales of a row: 1, or one for every 64 weights (see `ternary::groups`).
    pub groups: u32,
}

impl TernaryShape {
    /// Of a whole table.
    pub fn new(shape: Shape, groups: usize) -> Self {
        Self { shape, part: [0; 2], groups: groups as u32 }
    }
}

/// Cut along rows of the batch, or of the table.
fn gather_ternary(p: &Params) -> Vec<Cut> {
    let TernaryShape { shape, groups, .. } = p.get();
    let cols = shape.cols as usize;
    let mut of_tokens = tokens(p.get(), &[0, packed_words(cols), row_scale_words(groups as usize), 0]);
    let part = of_tokens.part;
    of_tokens.part = Box::new(move |first, count| {
        let mut params = part(first, count);
        params.0[std::mem::offset_of!(TernaryShape, groups) / 4] = groups;
        params
    });
    along_first(p, &[1, 0, 0, cols]).into_iter().chain([of_tokens]).collect()
}

/// As [`EMBED`] from a table of packed ternary rows. Shape: [`TernaryShape`]. Bindings: `ids`, `codes`, `scale`, `out`. One
/// thread per word of codes.
pub static EMBED_TERNARY: Kernel = Kernel {
    name: "embed_ternary",
    revision: 1,
    wgsl: &[include_str!("gather_ternary.wgsl"), include_str!("../half_value.wgsl"), include_str!("../ternary/weight.wgsl")],
    bindings: &[read("ids"), read("codes"), read("scale"), write("out")],
    grid: |p| {
        let s: Shape = p.get();
        grid_1d(s.rows as usize * packed_words(s.cols as usize), 256)
    },
    cut: gather_ternary,
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: cpu::gather_ternary,
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
    cut: scatter,
    variants: &[],
    scratch: NO_SCRATCH,
    cpu: cpu::scatter,
};
