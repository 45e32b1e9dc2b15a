//! What the products straight over the packed words share: tokens in groups, their activations arranged as a vector of
//! words meets them, outputs in blocks over the threads.
#![allow(unsafe_code)]

use rayon::prelude::*;

use super::Shape;
use super::product::{Product, Target};
use crate::simd::scratch;

/// Tokens of a group.
pub(super) const ROWS: usize = 8;
/// So few tokens that reading the codes is what takes the time.
pub(super) const FEW: usize = 2;
/// Outputs that one task computes at a time: their codes stay in the cache for all tokens.
pub(super) const OUTS: usize = 32;

/// Sums `[ROWS, OUTS]` of a group and a block.
pub(super) type Sums = [i32; OUTS * ROWS];

/// The codes of at most [`OUTS`] outputs and the arranged activations of at most [`ROWS`] tokens.
pub(super) struct Block<'a> {
    pub codes: &'a [u32],
    /// Of an output's codes.
    pub words: usize,
    pub arranged: &'a [u32],
    pub rows: usize,
}

crate::simd! {
    /// Activations of some rows as the codes meet them: vector `(b·rows + r)·4 + p` holds what belongs to field `p` of the
    /// words from `LANES·b` on, for row `r`; past the end of a row there are zeros.
    fn arrange<LANES>(q: &[u32], words: usize, out: &mut [u32]) {
        let rows = q.len() / (words * 4);
        let vectors = out.as_chunks_mut::<LANES>().0;
        for (r, q) in q.chunks_exact(words * 4).enumerate() {
            let (groups, rest) = q.as_chunks::<4>().0.as_chunks::<LANES>();
            for (b, group) in groups.iter().enumerate() {
                for (p, v) in vectors[(b * rows + r) * 4..][..4].iter_mut().enumerate() {
                    for (v, four) in v.iter_mut().zip(group) {
                        *v = four[p];
                    }
                }
            }
            if !rest.is_empty() {
                for (p, v) in vectors[(groups.len() * rows + r) * 4..][..4].iter_mut().enumerate() {
                    v.fill(0);
                    for (v, four) in v.iter_mut().zip(rest) {
                        *v = four[p];
                    }
                }
            }
        }
    }
}

/// The product over vectors of `LANES` words, given what sums a block.
pub(super) fn product<const LANES: usize>(s: &Shape, ops: &Product<'_>, y: &Target<'_>, sum: impl Fn(&Block<'_>, &mut Sums) + Sync) {
    let (rows, outs, words) = (s.rows as usize, s.outs as usize, (s.cols as usize).div_ceil(16));
    let blocks = words.div_ceil(LANES);
    let width = blocks * 4 * LANES;
    scratch::with_words(rows * width, |arranged| {
        let groups = arranged.par_chunks_mut(ROWS * width).zip(ops.q[..rows * words * 4].par_chunks(ROWS * words * 4));
        groups.for_each(|(out, q)| arrange::<LANES>(q, words, out));
        let arranged: &[u32] = arranged;
        let per = outs.div_ceil(OUTS).div_ceil(rayon::current_num_threads() * 4).max(1) * OUTS;
        (0..outs.div_ceil(per)).into_par_iter().for_each(|part| {
            let mut sums = [0i32; OUTS * ROWS];
            for first in (part * per..outs.min((part + 1) * per)).step_by(OUTS) {
                let n = OUTS.min(outs - first);
                let codes = &ops.codes[first * words..(first + n) * words];
                for r0 in (0..rows).step_by(ROWS) {
                    let m = ROWS.min(rows - r0);
                    sum(&Block { codes, words, arranged: &arranged[r0 * width..(r0 + m) * width], rows: m }, &mut sums);
                    // SAFETY: these outputs belong to this part, and each part to one task.
                    unsafe { y.put(s, ops, r0..r0 + m, (first, n), &sums) };
                }
            }
        });
    });
}
