//! CPU twins of the ternary weight kernels.

use rayon::prelude::*;

use super::{Shape, packed_words};
use crate::kernel::{Bufs, Params};
use crate::simd::math::{fold, sum};

pub(crate) fn row_abs_sum(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [w, partial] = bufs.take();
    let rows = partial.f32_mut().par_iter_mut().zip(w.f32().par_chunks(s.cols as usize));
    rows.take(s.rows as usize).for_each(|(out, row)| *out = abs_sum(row));
}

pub(crate) fn abs_mean(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [partial, mean] = bufs.take();
    mean.f32_mut()[0] = mean_of(&partial.f32()[..s.rows as usize], s.cols as usize);
}

/// mean|w| of a matrix, as the kernels sum it.
pub(crate) fn mean(w: &[f32], cols: usize) -> f32 {
    mean_of(&w.par_chunks(cols).map(abs_sum).collect::<Vec<_>>(), cols)
}

fn mean_of(partial: &[f32], cols: usize) -> f32 {
    let mut acc = [0f32; 16];
    for c in partial.chunks(16) {
        for (a, x) in acc.iter_mut().zip(c) {
            *a += x;
        }
    }
    fold(acc) / (partial.len() * cols) as f32
}

/// Packs a matrix on the host as the kernels do: its codes, and its scale under `rule` (0 absmean, 1 threshold: 1).
pub(crate) fn pack(w: &[f32], cols: usize, rule: u32) -> (Vec<u32>, f32) {
    let partial: Vec<f32> = w.par_chunks(cols).map(abs_sum).collect();
    let mean = mean_of(&partial, cols);
    let mut codes = vec![0u32; w.len() / cols * packed_words(cols)];
    codes.par_chunks_mut(packed_words(cols)).zip(w.par_chunks(cols)).for_each(|(out, row)| pack_row(row, mean, rule, out));
    (codes, if rule == 0 { mean.max(1e-5) } else { 1.0 })
}

pub(crate) fn ternarise(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [w, mean, codes, scale] = bufs.take();
    let (mean, cols) = (mean.f32()[0], s.cols as usize);
    scale.f32_mut()[..s.rows as usize].fill(if s.rule == 0 { mean.max(1e-5) } else { 1.0 });
    let rows = codes.u32_mut().par_chunks_mut(packed_words(cols)).zip(w.f32().par_chunks(cols));
    rows.take(s.rows as usize).for_each(|(out, row)| pack_row(row, mean, s.rule, out));
}

crate::simd! {
    pub(crate) fn abs_sum(row: &[f32]) -> f32 {
        sum(row, f32::abs)
    }

    pub(crate) fn pack_row(row: &[f32], mean: f32, rule: u32, out: &mut [u32]) {
        let threshold = 0.7 * mean;
        let scale = mean.max(1e-5);
        for (word, w) in out.iter_mut().zip(row.chunks(16)) {
            let mut codes = [1u32; 16];
            if rule == 0 {
                for (c, w) in codes.iter_mut().zip(w) {
                    let q = (w / scale).round_ties_even();
                    *c = 1 + u32::from(q >= 1.0) - u32::from(q <= -1.0);
                }
            } else {
                for (c, w) in codes.iter_mut().zip(w) {
                    *c = 1 + u32::from(*w > threshold) - u32::from(*w < -threshold);
                }
            }
            *word = 0;
            for (e, c) in codes.iter().enumerate() {
                *word |= c << ((e % 4) * 8 + (e / 4) * 2);
            }
        }
    }
}

/// Code of element `e` in a packed row.
fn unpack(row: &[u32], e: usize) -> f32 {
    (row[e / 16] >> ((e % 4) * 8 + (e / 4 % 4) * 2) & 3) as f32 - 1.0
}

pub(crate) fn threshold_grad(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [codes, scale, dw, dscale] = bufs.take();
    let cols = s.cols as usize;
    let rows = dw.f32_mut().par_chunks_mut(cols).zip(codes.u32().par_chunks(packed_words(cols))).zip(scale.f32()).zip(dscale.f32_mut());
    rows.take(s.rows as usize).for_each(|(((dw, codes), scale), dscale)| {
        let mut acc = [0f32; 16];
        for (e, d) in dw.iter_mut().enumerate() {
            acc[e % 16] = unpack(codes, e).mul_add(*d, acc[e % 16]);
            *d *= scale;
        }
        *dscale += fold(acc);
    });
}
