//! How the products are cut where their buffers are larger than what an adapter binds: along rows or columns of C, or along
//! the sums, whose later parts add.

use bytemuck::{Pod, Zeroable};

use super::{Shape, TernaryShape};
use crate::cut::Cut;
use crate::kernel::Params;
use crate::kernels::ternary::{groups::row_scale_words, packed_words};

/// A product, or a part of one whose A or C lies within a larger one.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Part {
    shape: Shape,
    /// Distance of A's rows; 0 is the shape's own.
    lda: u32,
    /// A's first element.
    a0: u32,
    /// Distance of C's rows; 0 is the shape's own.
    ldc: u32,
    /// C's first element.
    c0: u32,
}

/// A distance, or that of the shape.
fn distance(set: u32, own: u32) -> u32 {
    if set == 0 { own } else { set }
}

/// Rows or columns of C; one triangle of a symmetric product is made as a whole.
fn units(s: &Shape, count: u32) -> usize {
    if s.symmetric == 1 { 0 } else { count as usize }
}

fn cut(units: usize, words: [u32; 3], part: impl Fn(u32, u32) -> Part + 'static) -> Cut {
    let part = Box::new(move |first, count| Params::new(&part(first as u32, count as u32)));
    Cut { units, words: words.map(|n| n as usize).to_vec(), part }
}

/// Rows of A and C, A contiguous along k.
fn rows(p: Part) -> Cut {
    let s = p.shape;
    let words = [distance(p.lda, s.k), 0, distance(p.ldc, s.n)];
    cut(units(&s, s.m), words, move |_, m| Part { shape: Shape { m, ..s }, ..p })
}

/// Columns of C, rows of Bᵀ.
fn columns_nt(p: Part, values_a_word: u32) -> Cut {
    let s = p.shape;
    let ldc = distance(p.ldc, s.n);
    cut(units(&s, s.n), [0, s.k / values_a_word, 0], move |first, n| Part { shape: Shape { n, ..s }, ldc, c0: p.c0 + first, ..p })
}

/// Rows of C, columns of A, which is contiguous along m.
fn rows_tn(p: Part) -> Cut {
    let s = p.shape;
    let lda = distance(p.lda, s.m);
    let words = [0, 0, distance(p.ldc, s.n)];
    cut(units(&s, s.m), words, move |first, m| Part { shape: Shape { m, ..s }, lda, a0: p.a0 + first, ..p })
}

/// The sums: rows of B, and columns of A, or rows where it is contiguous along m. Later parts add.
fn depth(p: Part, transposed: bool) -> Cut {
    let s = p.shape;
    let lda = distance(p.lda, if transposed { s.m } else { s.k });
    cut(s.k as usize, [if transposed { lda } else { 0 }, s.n, 0], move |first, k| {
        let add = if first > 0 { 1 } else { s.add };
        Part { shape: Shape { k, add, ..s }, lda, a0: if transposed { p.a0 } else { p.a0 + first }, ..p }
    })
}

/// The cut of a product whose right operand has a buffer of scales beside it, with some words of them in a unit.
fn with_scales(mut cut: Cut, words: usize) -> Cut {
    cut.words.insert(2, words);
    cut
}

/// The cut along the depth of a product whose right operand is packed.
fn with_codes(cut: Cut, codes: usize, scales: usize) -> Cut {
    let mut cut = with_scales(cut, scales);
    cut.words[1] = codes;
    cut
}

pub(super) fn nn(p: &Params) -> Vec<Cut> {
    vec![rows(p.get()), depth(p.get(), false)]
}

pub(super) fn nt(p: &Params) -> Vec<Cut> {
    // The triangle is that of a matrix by its own transpose: a part makes both sides of it, with the same bits.
    let mut p: Part = p.get();
    p.shape.symmetric = 0;
    vec![rows(p), columns_nt(p, 1)]
}

pub(super) fn nt_half(p: &Params) -> Vec<Cut> {
    vec![rows(p.get()), columns_nt(p.get(), 2)]
}

pub(super) fn tn(p: &Params) -> Vec<Cut> {
    vec![rows_tn(p.get()), depth(p.get(), true)]
}

pub(super) fn nn_ternary(p: &Params) -> Vec<Cut> {
    let codes = packed_words(p.get::<Shape>().n as usize);
    vec![with_scales(rows(p.get()), 0), with_codes(depth(p.get(), false), codes, 1)]
}

pub(super) fn tn_q8(p: &Params) -> Vec<Cut> {
    let codes = 4 * packed_words(p.get::<Shape>().n as usize);
    vec![with_scales(rows_tn(p.get()), 0), with_codes(depth(p.get(), true), codes, 2)]
}

/// A cut whose parts know the scales of a row.
fn with_groups(mut cut: Cut, groups: u32) -> Cut {
    let part = cut.part;
    cut.part = Box::new(move |first, count| {
        let mut params = part(first, count);
        params.0[GROUPS] = groups;
        params
    });
    cut
}

/// The word of the groups in [`TernaryShape`].
const GROUPS: usize = std::mem::offset_of!(TernaryShape, groups) / 4;

pub(super) fn nt_ternary(p: &Params) -> Vec<Cut> {
    let (part, s): (Part, TernaryShape) = (p.get(), p.get());
    let mut columns = with_scales(columns_nt(part, 1), row_scale_words(s.groups as usize));
    columns.words[1] = packed_words(s.shape.k as usize);
    [with_scales(rows(part), 0), columns].map(|cut| with_groups(cut, s.groups)).into()
}

pub(super) fn nn_groups(p: &Params) -> Vec<Cut> {
    let (part, s): (Part, TernaryShape) = (p.get(), p.get());
    let along = with_codes(depth(part, false), packed_words(s.shape.n as usize), row_scale_words(s.groups as usize));
    [with_scales(rows(part), 0), along].map(|cut| with_groups(cut, s.groups)).into()
}
