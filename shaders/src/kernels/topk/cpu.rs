//! CPU twin of Top-K + Other.

use rayon::prelude::*;

use super::Shape;
use crate::kernel::{Bufs, Params};
use crate::simd::math::{exp, ln, max, sum};
use crate::simd::scratch;

/// Log-mass of an empty tail.
const EMPTY: f32 = -80.0;

pub(crate) fn topk(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [logits, ids, logprobs, other] = bufs.take();
    let (vocab, k, width) = (s.vocab as usize, s.k as usize, 1 + s.n_tau as usize);
    let outs = ids.u32_mut().par_chunks_mut(k).zip(logprobs.f32_mut().par_chunks_mut(k)).zip(other.f32_mut().par_chunks_mut(width));
    outs.zip(logits.f32().par_chunks(vocab)).take(s.rows as usize).for_each(|(((ids, logprobs), other), z)| {
        largest(z, ids);
        scratch::with(vocab, |e| scratch::with(k, |kept| tail(z, ids, &s, e, kept, logprobs, other)));
    });
}

/// Up to so many the best are kept sorted while the row is read; for more the whole row is sorted.
const FEW: usize = 64;

/// The ids of the largest logits in falling order, lower ids first among equals.
fn largest(z: &[f32], ids: &mut [u32]) {
    let k = ids.len();
    if k > FEW {
        let mut order: Vec<u32> = (0..z.len() as u32).collect();
        // −0 and 0 are equal, and NaN comes first, as below.
        let key = |i: &u32| z[*i as usize] + 0.0;
        order.sort_unstable_by(|a, b| key(b).total_cmp(&key(a)).then(a.cmp(b)));
        ids.copy_from_slice(&order[..k]);
        return;
    }
    let mut best: Vec<(f32, u32)> = Vec::with_capacity(k + 1);
    for (block, chunk) in z.chunks(64).enumerate() {
        let full = best.len() == k;
        if full && max(chunk) <= best[k - 1].0 {
            continue;
        }
        for (i, v) in chunk.iter().enumerate() {
            if best.len() == k && *v <= best[k - 1].0 {
                continue;
            }
            let at = best.partition_point(|(b, _)| *b >= *v);
            best.insert(at, (*v, (block * 64 + i) as u32));
            best.truncate(k);
        }
    }
    for (id, (_, i)) in ids.iter_mut().zip(&best) {
        *id = *i;
    }
}

crate::simd! {
    fn tail(z: &[f32], ids: &[u32], s: &Shape, e: &mut [f32], kept: &mut [f32], logprobs: &mut [f32], other: &mut [f32]) {
        let top = z[ids[0] as usize];
        for (e, z) in e.iter_mut().zip(z) {
            *e = exp(z - top);
        }
        let lse = top + ln(sum(e, |x| x));
        for (l, id) in logprobs.iter_mut().zip(ids) {
            *l = z[*id as usize] - lse;
        }
        for (i, out) in other.iter_mut().enumerate() {
            let inv = if i == 0 { 1.0 } else { 1.0 / s.taus[i - 1] };
            if inv != 1.0 {
                for (e, z) in e.iter_mut().zip(z) {
                    *e = exp((z - top) * inv);
                }
            }
            for (k, id) in kept.iter_mut().zip(ids) {
                *k = std::mem::replace(&mut e[*id as usize], 0.0);
            }
            let rest = sum(e, |x| x);
            let value = if rest < 1e-37 { EMPTY } else { ln(rest) + (top - lse) * inv };
            *out = if value < EMPTY { EMPTY } else { value };
            for (k, id) in kept.iter().zip(ids) {
                e[*id as usize] = *k;
            }
        }
    }
}
