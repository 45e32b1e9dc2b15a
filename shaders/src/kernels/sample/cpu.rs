//! CPU twins of argmax and sampling.

use rayon::prelude::*;

use super::Shape;
use crate::kernel::{Bufs, Params};
use crate::simd::math::{LANES, exp, fold, max, sum};
use crate::simd::scratch;

pub(crate) fn argmax(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [logits, ids] = bufs.take();
    let rows = ids.u32_mut().par_iter_mut().zip(logits.f32().par_chunks(s.vocab as usize));
    rows.take(s.rows as usize).for_each(|(id, z)| {
        let top = max(z);
        *id = z.iter().position(|v| *v == top).unwrap_or(0) as u32;
    });
}

pub(crate) fn sample(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [logits, u, ids] = bufs.take();
    let rows = ids.u32_mut().par_iter_mut().zip(logits.f32().par_chunks(s.vocab as usize)).zip(u.f32());
    rows.take(s.rows as usize).for_each(|((id, z), u)| {
        *id = scratch::with(z.len(), |e| draw(z, e, s.temperature, s.top_p, *u)) as u32;
    });
}

crate::simd! {
    fn draw(z: &[f32], e: &mut [f32], temperature: f32, top_p: f32, u: f32) -> usize {
        let top = max(z);
        let inverse = 1.0 / temperature;
        for (e, z) in e.iter_mut().zip(z) {
            *e = exp((z - top) * inverse);
        }
        let wanted = top_p * sum(e, |x| x);
        // Largest bit pattern whose nucleus still holds the wanted mass; e = 1 at the maximum.
        let (mut low, mut high) = (0u32, 1f32.to_bits());
        if top_p < 1.0 {
            for _ in 0..32 {
                if low >= high {
                    break;
                }
                let middle = low + (high - low).div_ceil(2);
                if mass(e, f32::from_bits(middle)) >= wanted { low = middle } else { high = middle - 1 }
            }
        }
        let threshold = f32::from_bits(low);
        let goal = u * mass(e, threshold);
        let mut running = 0f32;
        let mut last = 0;
        for (j, e) in e.iter().enumerate() {
            if *e >= threshold {
                running += e;
                last = j;
                if running > goal {
                    return j;
                }
            }
        }
        last
    }
}

/// Σ of the entries at or above the threshold.
#[inline(always)]
fn mass(e: &[f32], threshold: f32) -> f32 {
    let mut acc = [0f32; LANES];
    for c in e.chunks(LANES) {
        for (a, x) in acc.iter_mut().zip(c) {
            *a += if *x >= threshold { *x } else { 0.0 };
        }
    }
    fold(acc)
}
