//! CPU twin of the activation quantiser.

use rayon::prelude::*;

use super::{RowScale, Shape};
use crate::kernel::{Bufs, Params};
use crate::kernels::hyper;
use crate::simd::math::{LANES, max};

pub(crate) fn act_quant(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [x, hyper, q, scales] = bufs.take();
    let qmax = hyper.f32()[hyper::QMAX];
    let scales: &mut [RowScale] = bytemuck::cast_slice_mut(scales.u32_mut());
    let rows = q.u32_mut().par_chunks_mut(s.words as usize).zip(x.f32().par_chunks(s.cols as usize)).zip(scales);
    rows.take(s.rows as usize).for_each(|((q, x), scale)| *scale = row(x, qmax, bytemuck::cast_slice_mut(q)));
}

crate::simd! {
    /// Codes of a row and what belongs to them.
    pub(crate) fn row(x: &[f32], qmax: f32, q: &mut [i8]) -> RowScale {
        let step = absmax(x).max(1e-5) / qmax;
        q[x.len()..].fill(0);
        let mut total = 0i32;
        for (q, x) in q.iter_mut().zip(x) {
            let v = x / step;
            let v = if v < -qmax { -qmax } else { v };
            let v = if v > qmax { qmax } else { v };
            // NaN becomes 0. Adding 1.5·2^23 rounds ties to even and leaves the integer in the low bits.
            let v = if v.is_nan() { 0.0 } else { v };
            let v = (v + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i32;
            *q = v as i8;
            total += v;
        }
        RowScale { step, sum: total }
    }
}

const ROUND: f32 = 12_582_912.0;

#[inline(always)]
fn absmax(x: &[f32]) -> f32 {
    let mut acc = [0f32; LANES];
    let chunks = x.chunks_exact(LANES);
    for (i, v) in chunks.remainder().iter().enumerate() {
        acc[i] = acc[i].max(v.abs());
    }
    for c in chunks {
        for i in 0..LANES {
            acc[i] = acc[i].max(c[i].abs());
        }
    }
    max(&acc)
}
