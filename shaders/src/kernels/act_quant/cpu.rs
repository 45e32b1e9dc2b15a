//! CPU twin of the activation quantiser.

use rayon::prelude::*;

use super::{FITS, RowScale, Shape};
use crate::kernel::{Bufs, Params};
use crate::kernels::hyper;
use crate::simd::math::{LANES, max, sum};

pub(crate) fn act_quant(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [x, hyper, q, scales] = bufs.take();
    let hyper = hyper.f32();
    let (qmax, fit) = (hyper[hyper::QMAX], hyper[hyper::FIT]);
    let extra = if s.mode == 0 { fit } else { s.clip };
    let scales: &mut [RowScale] = bytemuck::cast_slice_mut(scales.u32_mut());
    let rows = q.u32_mut().par_chunks_mut(s.words as usize).zip(x.f32().par_chunks(s.cols as usize)).zip(scales);
    rows.take(s.rows as usize).for_each(|((q, x), scale)| *scale = row(x, s.mode, qmax, extra, bytemuck::cast_slice_mut(q)));
}

crate::simd! {
    /// Codes of a row and what belongs to them; modes as in the module's description. `extra` is whether to fit in
    /// mode 0, the clip value in mode 2.
    pub(crate) fn row(x: &[f32], mode: u32, qmax: f32, extra: f32, q: &mut [i8]) -> RowScale {
        let (step, divisor, low, high) = match mode {
            0 => {
                let largest = absmax(x).max(1e-5);
                let step = if extra == 1.0 { fitted(x, largest, qmax) } else { largest / qmax };
                (step, step, -qmax, qmax)
            }
            1 => {
                let beta = sum(x, f32::abs) / x.len() as f32;
                let root7 = 2.645_751_3f32;
                (beta / root7, (beta + 1e-5) / root7, -8.0, 7.0)
            }
            _ => {
                let step = extra / qmax;
                (step, step, -qmax, qmax)
            }
        };
        q[x.len()..].fill(0);
        let mut total = 0i32;
        for (q, x) in q.iter_mut().zip(x) {
            let v = x / divisor;
            let v = if v < low { low } else { v };
            let v = if v > high { high } else { v };
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

/// The step with the least squared error.
#[inline(always)]
fn fitted(x: &[f32], largest: f32, qmax: f32) -> f32 {
    let mut best = (f32::INFINITY, largest / qmax);
    for share in FITS {
        let step = share * largest / qmax;
        let error = sum(x, |x| {
            let code = (x / step + ROUND) - ROUND;
            let code = if code < -qmax { -qmax } else { code };
            let code = if code > qmax { qmax } else { code };
            let off = x - step * code;
            off * off
        });
        if error < best.0 {
            best = (error, step);
        }
    }
    best.1
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
