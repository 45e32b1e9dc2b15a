//! CPU twins of attention: one (row, head) at a time forward and for dq, one sequence at a time for dk and dv.

use rayon::prelude::*;

use super::Shape;
use crate::kernel::{Bufs, Params};
use crate::simd::math::{axpy, dot, exp, ln, max};
use crate::simd::scratch;

struct Dims {
    d: usize,
    heads: usize,
    group: usize,
    kv: usize,
    q_len: usize,
    kv_len: usize,
    scale: f32,
}

fn dims(s: &Shape) -> Dims {
    Dims {
        d: s.head_dim as usize,
        heads: s.heads as usize,
        group: (s.heads / s.kv_heads) as usize,
        kv: (s.kv_heads * s.head_dim) as usize,
        q_len: s.q_len as usize,
        kv_len: s.kv_len as usize,
        scale: s.scale,
    }
}

pub(crate) fn forward(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [q, k, v, mask, pos, o, stats] = bufs.take();
    let (q, k, v, mask, pos, n) = (q.f32(), k.f32(), v.f32(), mask.u32(), pos.u32(), dims(&s));
    let width = n.heads * n.d;
    let rows = o.f32_mut().par_chunks_mut(width).zip(stats.f32_mut().par_chunks_mut(n.heads * 2)).enumerate();
    rows.take(s.rows as usize).for_each(|(r, (o, stats))| {
        let seen = pos[r] as usize + 1;
        let b = r / n.q_len;
        let keys = b * n.kv_len;
        scratch::with(seen, |w| {
            for h in 0..n.heads {
                let at = keys * n.kv + h / n.group * n.d;
                let q = &q[r * width + h * n.d..][..n.d];
                stats[2 * h] = attend(q, &k[at..], &v[at..], &mask[keys..keys + seen], &n, w, &mut o[h * n.d..(h + 1) * n.d]);
            }
        });
    });
}

crate::simd! {
    fn attend(q: &[f32], k: &[f32], v: &[f32], mask: &[u32], n: &Dims, w: &mut [f32], o: &mut [f32]) -> f32 {
        for (j, w) in w.iter_mut().enumerate() {
            *w = if mask[j] == 0 { f32::NEG_INFINITY } else { dot(q, &k[j * n.kv..j * n.kv + n.d]) * n.scale };
        }
        let top = max(w);
        let mut total = 0f32;
        o.fill(0.0);
        for (j, w) in w.iter().enumerate() {
            if mask[j] == 0 {
                continue;
            }
            let e = exp(w - top);
            total += e;
            axpy(e, &v[j * n.kv..j * n.kv + n.d], o);
        }
        if total == 0.0 {
            return f32::NEG_INFINITY;
        }
        let inverse = 1.0 / total;
        for o in o.iter_mut() {
            *o *= inverse;
        }
        top + ln(total)
    }

    fn grad_q_row(q: &[f32], k: &[f32], v: &[f32], mask: &[u32], do_: &[f32], stats: [f32; 2], n: &Dims, dq: &mut [f32]) {
        dq.fill(0.0);
        for (j, m) in mask.iter().enumerate() {
            if *m == 0 {
                continue;
            }
            let key = &k[j * n.kv..j * n.kv + n.d];
            let p = exp(dot(q, key).mul_add(n.scale, -stats[0]));
            let ds = p * (dot(do_, &v[j * n.kv..j * n.kv + n.d]) - stats[1]) * n.scale;
            axpy(ds, key, dq);
        }
    }

    fn grad_kv_row(q: &[f32], k: &[f32], v: &[f32], mask: &[u32], do_: &[f32], stats: [f32; 2], n: &Dims, dk: &mut [f32], dv: &mut [f32]) {
        for (j, m) in mask.iter().enumerate() {
            if *m == 0 {
                continue;
            }
            let at = j * n.kv..j * n.kv + n.d;
            let p = exp(dot(q, &k[at.clone()]).mul_add(n.scale, -stats[0]));
            let ds = p * (dot(do_, &v[at.clone()]) - stats[1]) * n.scale;
            axpy(ds, q, &mut dk[at.clone()]);
            axpy(p, do_, &mut dv[at]);
        }
    }

    fn delta_row(do_: &[f32], o: &[f32]) -> f32 {
        dot(do_, o)
    }
}

pub(crate) fn delta(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [do_, o, stats] = bufs.take();
    let d = s.head_dim as usize;
    let heads = stats.f32_mut().par_chunks_mut(2).zip(do_.f32().par_chunks(d)).zip(o.f32().par_chunks(d));
    heads.take((s.rows * s.heads) as usize).for_each(|((stats, do_), o)| stats[1] = delta_row(do_, o));
}

pub(crate) fn grad_q(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [q, k, v, mask, do_, stats, dq] = bufs.take();
    let (q, k, v, mask, do_, stats, n) = (q.f32(), k.f32(), v.f32(), mask.u32(), do_.f32(), stats.f32(), dims(&s));
    let width = n.heads * n.d;
    dq.f32_mut().par_chunks_mut(width).enumerate().take(s.rows as usize).for_each(|(r, dq)| {
        let keys = r / n.q_len * n.kv_len;
        let seen = r % n.q_len + 1;
        for h in 0..n.heads {
            let at = keys * n.kv + h / n.group * n.d;
            let row = r * width + h * n.d..r * width + (h + 1) * n.d;
            let st = [stats[(r * n.heads + h) * 2], stats[(r * n.heads + h) * 2 + 1]];
            let out = &mut dq[h * n.d..(h + 1) * n.d];
            grad_q_row(&q[row.clone()], &k[at..], &v[at..], &mask[keys..keys + seen], &do_[row], st, &n, out);
        }
    });
}

pub(crate) fn grad_kv(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [q, k, v, mask, do_, stats, dk, dv] = bufs.take();
    let (q, k, v, mask, do_, stats, n) = (q.f32(), k.f32(), v.f32(), mask.u32(), do_.f32(), stats.f32(), dims(&s));
    let width = n.heads * n.d;
    let size = n.kv_len * n.kv;
    let sequences = dk.f32_mut().par_chunks_mut(size).zip(dv.f32_mut().par_chunks_mut(size)).enumerate();
    sequences.take((s.rows / s.q_len) as usize).for_each(|(b, (dk, dv))| {
        dk.fill(0.0);
        dv.fill(0.0);
        let keys = b * n.kv_len;
        for h in 0..n.heads {
            let g = h / n.group * n.d;
            for i in 0..n.q_len {
                let r = b * n.q_len + i;
                let row = r * width + h * n.d..r * width + (h + 1) * n.d;
                let st = [stats[(r * n.heads + h) * 2], stats[(r * n.heads + h) * 2 + 1]];
                let at = keys * n.kv + g;
                let mask = &mask[keys..=keys + i];
                grad_kv_row(&q[row.clone()], &k[at..], &v[at..], mask, &do_[row], st, &n, &mut dk[g..], &mut dv[g..]);
            }
        }
    });
}
