//! CPU twin of the activation quantiser.

use rayon::prelude::*;

use super::Shape;
use crate::kernel::{Bufs, Params};
use crate::kernels::hyper;
use crate::simd::math::{LANES, max, sum};

pub(crate) fn act_quant(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [x, hyper, q, step, qsum] = bufs.take();
    let qmax = hyper.f32()[hyper::QMAX];
    let rows =
        q.u32_mut().par_chunks_mut(s.words as usize).zip(x.f32().par_chunks(s.cols as usize)).zip(step.f32_mut()).zip(qsum.i32_mut());
    rows.take(s.rows as usize).for_each(|(((q, x), step), qsum)| {
        (*step, *qsum) = row(x, s.mode, qmax, s.clip, bytemuck::cast_slice_mut(q));
    });
}

crate::simd! {
    fn row(x: &[f32], mode: u32, qmax: f32, clip: f32, q: &mut [i8]) -> (f32, i32) {
        let (step, divisor, low, high) = match mode {
            0 => {
                let step = absmax(x).max(1e-5) / qmax;
                (step, step, -qmax, qmax)
            }
            1 => {
                let beta = sum(x, f32::abs) / x.len() as f32;
                let root7 = 2.645_751_3f32;
                (beta / root7, (beta + 1e-5) / root7, -8.0, 7.0)
            }
            _ => {
                let step = clip / qmax;
                (step, step, -qmax, qmax)
            }
        };
        q[x.len()..].fill(0);
        let mut total = 0i32;
        for (q, x) in q.iter_mut().zip(x) {
            let v = (x / divisor).round_ties_even();
            let v = if v < low { low } else { v };
            let v = if v > high { high } else { v };
            let v = v as i32;
            *q = v as i8;
            total += v;
        }
        (step, total)
    }
}

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
