//! CPU twins of the distillation loss.

use rayon::prelude::*;

use super::Shape;
use crate::kernel::{Bufs, Params};
use crate::kernels::hyper;
use crate::simd::math::{exp, ln, max, sum};
use crate::simd::scratch;

/// Lowest ln s_other: below it the student's tail is as good as empty.
const FLOOR: f32 = -80.0;

pub(crate) fn kd_loss(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    // The logits that the WGSL puts into `kept` while it works are in a thread's own memory here.
    let [logits, ids, targets, meta, labels, hyper, losses, _] = bufs.take();
    let (ids, targets, meta, labels) = (ids.i32(), targets.f32(), meta.f32(), labels.i32());
    let (inv_tau, vocab, k) = (hyper.f32()[hyper::INV_TAU], s.vocab as usize, s.k as usize);
    let rows = logits.f32_mut().par_chunks_mut(vocab).zip(losses.f32_mut().par_chunks_mut(4)).enumerate();
    rows.take(s.rows as usize).for_each(|(r, (z, losses))| {
        losses.fill(0.0);
        if labels[r] < 0 {
            z.fill(0.0);
            return;
        }
        let meta = &meta[r * 4..r * 4 + 4];
        let row = if k > 0 { r * k..(r + 1) * k } else { 0..0 };
        let kd = meta[1] != 0.0 && k > 0;
        let (ids, targets) = (&ids[row.clone()], &targets[row]);
        let row = Row { ids, targets, other: meta[0], w_kd: meta[1], w_ce: meta[2] + meta[3], label: labels[r] as usize, inv_tau, kd };
        scratch::with(vocab, |e| scratch::with(3 * k, |of_buckets| (losses[0], losses[1]) = loss_row(z, e, &row, of_buckets)));
    });
}

struct Row<'a> {
    ids: &'a [i32],
    targets: &'a [f32],
    other: f32,
    w_kd: f32,
    w_ce: f32,
    label: usize,
    inv_tau: f32,
    kd: bool,
}

/// Teacher buckets: softmax over the present targets and Other, whose probability it gives; absent buckets keep what was there.
fn teacher(row: &Row<'_>, t: &mut [f32]) -> f32 {
    let present = |i: &usize| row.ids[*i] >= 0;
    let top = (0..row.ids.len()).filter(present).map(|i| row.targets[i]).fold(row.other, f32::max);
    let mut total = exp(row.other - top);
    for i in (0..row.ids.len()).filter(present) {
        t[i] = exp(row.targets[i] - top);
        total += t[i];
    }
    t.iter_mut().for_each(|t| *t /= total);
    exp(row.other - top) / total
}

crate::simd! {
    /// (kl, ce) of one row; `z` becomes its gradient, `e` is scratch, and so are three floats for each bucket.
    fn loss_row(z: &mut [f32], e: &mut [f32], row: &Row<'_>, of_buckets: &mut [f32]) -> (f32, f32) {
        let top = max(z);
        for (e, z) in e.iter_mut().zip(&*z) {
            *e = exp(*z - top);
        }
        let total = sum(e, |x| x);
        let ce = ln(total) + top - z[row.label];
        let mut kl = 0.0;
        if !row.kd {
            let c = row.w_ce / total;
            for (z, e) in z.iter_mut().zip(&*e) {
                *z = c * e;
            }
            z[row.label] -= row.w_ce;
            return (kl, ce);
        }
        let (targets, rest) = of_buckets.split_at_mut(row.ids.len());
        let (s, kept) = rest.split_at_mut(row.ids.len());
        let t_other = teacher(row, targets);
        let scale = row.w_kd * row.inv_tau;
        let same = row.inv_tau == 1.0;
        let ce_factor = row.w_ce / total;
        // Gradient of the cross-entropy first: with τ = 1 both parts share the exponentials.
        let z_label = z[row.label];
        for (i, id) in row.ids.iter().enumerate() {
            if *id >= 0 {
                s[i] = (z[*id as usize] - top) * row.inv_tau;
            }
        }
        if same {
            for (z, e) in z.iter_mut().zip(&*e) {
                *z = ce_factor * e;
            }
        } else {
            for (z, e) in z.iter_mut().zip(e.iter_mut()) {
                let shifted = (*z - top) * row.inv_tau;
                *z = ce_factor * *e;
                *e = exp(shifted);
            }
        }
        debug_assert!(z_label <= top || z_label.is_nan());
        z[row.label] -= row.w_ce;
        let tau_total = if same { total } else { sum(e, |x| x) };
        let ln_total = ln(tau_total);
        for (i, id) in row.ids.iter().enumerate() {
            if *id >= 0 {
                kept[i] = std::mem::replace(&mut e[*id as usize], 0.0);
            }
        }
        let rest = sum(e, |x| x);
        let rest = if rest < 1e-37 { 1e-37 } else { rest };
        let ln_other = ln(rest) - ln_total;
        let ln_other = if ln_other < FLOOR { FLOOR } else { ln_other };
        if t_other > 0.0 {
            kl += t_other * (ln(t_other) - ln_other);
        }
        let factor = scale * (1.0 / tau_total - t_other / rest);
        for (z, e) in z.iter_mut().zip(&*e) {
            *z = factor.mul_add(*e, *z);
        }
        for (i, id) in row.ids.iter().enumerate() {
            if *id >= 0 {
                z[*id as usize] += scale * (kept[i] / tau_total - targets[i]);
                if targets[i] > 0.0 {
                    kl += targets[i] * (ln(targets[i]) - (s[i] - ln_total));
                }
            }
        }
        (kl, ce)
    }
}

pub(crate) fn loss_sum(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [losses, meta, out] = bufs.take();
    let out = out.f32_mut();
    let mut acc = [[0f32; 4]; 16];
    for (r, (l, m)) in losses.f32().chunks_exact(4).zip(meta.f32().chunks_exact(4)).enumerate().take(s.rows as usize) {
        let a = &mut acc[r % 16];
        a[0] = m[1].mul_add(l[0], a[0]);
        a[1] = m[2].mul_add(l[1], a[1]);
        a[2] = m[3].mul_add(l[1], a[2]);
        a[3] += if l[0].is_finite() && l[1].is_finite() { 0.0 } else { 1.0 };
    }
    for (i, o) in out.iter_mut().enumerate().take(4) {
        *o += crate::simd::math::fold(acc.map(|a| a[i]));
    }
}
