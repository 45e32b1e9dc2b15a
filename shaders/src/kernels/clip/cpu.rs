//! CPU twins of global-norm clipping.

use rayon::prelude::*;

use super::{BLOCK, Finish, SumSq};
use crate::kernel::{Bufs, Params};
use crate::kernels::hyper;
use crate::simd::math::{fold, squares};

pub(crate) fn sum_sq(p: &Params, bufs: Bufs<'_>) {
    let s: SumSq = p.get();
    let [x, partials] = bufs.take();
    let blocks = x.f32()[..s.n as usize].par_chunks(BLOCK);
    partials.f32_mut()[s.offset as usize..].par_iter_mut().zip(blocks).for_each(|(out, x)| *out = square_sum(x));
}

crate::simd! {
    fn square_sum(x: &[f32]) -> f32 {
        squares(x)
    }
}

/// √ of the sum of the partials.
pub(crate) fn norm(partials: &[f32]) -> f32 {
    let mut acc = [0f32; 16];
    for c in partials.chunks(16) {
        for (a, x) in acc.iter_mut().zip(c) {
            *a += x;
        }
    }
    fold(acc).sqrt()
}

pub(crate) fn finish(p: &Params, bufs: Bufs<'_>) {
    let s: Finish = p.get();
    let [partials, hyper, clip] = bufs.take();
    let hyper = hyper.f32();
    let (limit, unscale) = (hyper[hyper::CLIP], hyper[hyper::INV_LOSS_SCALE]);
    let norm = norm(&partials.f32()[..s.n as usize]) * unscale;
    let out = clip.f32_mut();
    let finite = norm.is_finite();
    out[0] = norm;
    out[1] = if finite { (limit / (norm + 1e-6)).min(1.0) * unscale } else { 0.0 };
    out[2] = if finite { 0.0 } else { 1.0 };
    out[3] = 0.0;
}
