//! How attention is cut where its buffers are larger than what an adapter binds: along sequences; the keys of one sequence
//! stay together.

use bytemuck::{Pod, Zeroable};

use super::{Cached, Shape};
use crate::cut::{Cut, along_sequences};
use crate::kernel::Params;

/// A dispatch of the forward pass, or a part of one that binds the keys and values of its sequences and the rest whole.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Part {
    shape: Shape,
    /// Its first row.
    first: u32,
}

/// Words of a sequence: of its rows over all heads, its keys (or values) in a form, its mask, its statistics.
fn sequence(s: &Shape, form: Cached) -> [usize; 4] {
    let (rows, keys, heads) = (s.q_len as usize, s.kv_len as usize, s.heads as usize);
    let row = heads * s.head_dim as usize;
    [rows * row, keys * s.kv_heads as usize * form.words(s.head_dim as usize), keys, 2 * rows * heads]
}

/// Whole sequences, with some words of one in each binding.
fn sequences(s: Shape, words: &[usize]) -> Cut {
    along_sequences(s.rows, s.q_len, words, move |_, rows| Params::new(&Shape { rows, ..s }))
}

/// The forward pass: whole sequences; or only their keys and values, where a few rows do not begin where a binding may; or
/// rows of a single sequence.
pub(super) fn over_cache(p: &Params, form: Cached) -> Vec<Cut> {
    let Part { shape: s, first } = p.get();
    let [q, kv, mask, stats] = sequence(&s, form);
    let part = move |from, rows| Params::new(&Part { shape: Shape { rows, ..s }, first: first + from });
    let keys = along_sequences(s.rows, s.q_len, &[0, kv, kv, 0, 0, 0, 0], part);
    // What already begins at a later row than its bindings stays so.
    if first > 0 {
        return vec![keys];
    }
    let row = (s.heads * s.head_dim) as usize;
    let rows = Cut {
        units: if s.rows == s.q_len { s.rows as usize } else { 0 },
        words: vec![row, 0, 0, 0, 1, row, 2 * s.heads as usize],
        part: Box::new(move |_, count| Params::new(&Shape { rows: count as u32, q_len: count as u32, ..s })),
    };
    vec![sequences(s, &[q, kv, kv, mask, s.q_len as usize, q, stats]), keys, rows]
}

/// The gradient of the queries.
pub(super) fn grad_q(p: &Params) -> Vec<Cut> {
    let s: Shape = p.get();
    let [q, kv, mask, stats] = sequence(&s, Cached::Float);
    vec![sequences(s, &[q, kv, kv, mask, q, stats, q])]
}

/// The gradients of keys and values.
pub(super) fn grad_kv(p: &Params) -> Vec<Cut> {
    let s: Shape = p.get();
    let [q, kv, mask, stats] = sequence(&s, Cached::Float);
    vec![sequences(s, &[q, kv, kv, mask, q, stats, kv, kv])]
}
