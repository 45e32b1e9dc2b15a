//! CPU twins of attention, one sequence at a time, its matrices through the register tiles of `gemm`: every score, weighted
//! sum and gradient is a chain of fused multiply-adds in ascending order of what it sums over. Decoding (few rows a
//! sequence) runs over the keys directly.

use std::ops::Range;

use rayon::prelude::*;

use super::cached::Held;
use super::dims::{Dims, dims};
use super::{Cached, Shape};
use crate::kernel::{Buf, Bufs, Params};
use crate::kernels::gemm::cpu::small;
use crate::kernels::gemm::pack::{Operand, Panels, pack_right, panel_floats};
use crate::kernels::gemm::tile::{self, Out, Tile};
use crate::simd::math::{dot, exp, ln, max, sum};
use crate::simd::scratch;

/// Rows that share one length of keys: a multiple of every tile's height, so that all tiles sum the same terms.
const GROUP: usize = 24;
/// Fewer rows a sequence than this go over the keys directly.
const FEW: usize = 8;
/// Keys' floats below which another thread costs more than it does.
const PARALLEL_FLOATS: usize = 16_384;

pub(crate) fn forward(p: &Params, bufs: Bufs<'_>, form: Cached) {
    let s: Shape = p.get();
    let [q, k, v, mask, pos, o, stats] = bufs.take();
    let (q, k, v, mask, pos, n) = (q.f32(), k.u32(), v.u32(), mask.u32(), pos.u32(), dims(&s));
    let (rows, tile) = (s.rows as usize, tile::best());
    let sequences = o.f32_mut()[..rows * n.width]
        .par_chunks_mut(n.q_len * n.width)
        .zip(stats.f32_mut()[..rows * n.heads * 2].par_chunks_mut(n.q_len * n.heads * 2))
        .enumerate();
    sequences.for_each(|(b, (o, stats))| {
        let keys = b * n.kv_len;
        let of = Sequence {
            q: &q[b * n.q_len * n.width..(b + 1) * n.q_len * n.width],
            k: Held { form, words: k, first: keys },
            v: Held { form, words: v, first: keys },
            mask: &mask[keys..keys + n.kv_len],
            pos: &pos[b * n.q_len..(b + 1) * n.q_len],
        };
        if n.q_len < FEW { of.decode(&n, o, stats) } else { of.parts(&n, tile, rows / n.q_len, o, stats) }
    });
}

#[derive(Clone, Copy)]
struct Sequence<'a> {
    q: &'a [f32],
    k: Held<'a>,
    v: Held<'a>,
    mask: &'a [u32],
    pos: &'a [u32],
}

/// Where outputs `[rows, width]` and log-sum-exps `[rows, heads, 2]` of some heads go.
struct Place<'a> {
    o: &'a mut [f32],
    width: usize,
    stats: &'a mut [f32],
    heads: usize,
}

impl Sequence<'_> {
    /// KV heads in parallel where there is enough to do.
    fn decode(&self, n: &Dims, o: &mut [f32], stats: &mut [f32]) {
        let longest = self.pos.iter().max().map_or(0, |p| *p as usize + 1);
        let together = (PARALLEL_FLOATS / (longest * n.d * n.group).max(1)).max(1);
        let groups = o.par_chunks_mut(n.group * n.d).zip(stats.par_chunks_mut(2 * n.group)).enumerate().with_min_len(together);
        groups.for_each(|(part, (o, stats))| {
            let (i, g) = (part / (n.heads / n.group), part % (n.heads / n.group));
            let q = &self.q[i * n.width + g * n.group * n.d..][..n.group * n.d];
            self.attend(n, g, q, &self.mask[..=self.pos[i] as usize], o, stats);
        });
    }

    /// The query heads of one row that share KV head `g`: scores, weights, weighted sums.
    fn attend(&self, n: &Dims, g: usize, q: &[f32], mask: &[u32], o: &mut [f32], stats: &mut [f32]) {
        let seen = mask.len();
        let (for_k, for_v) = (self.k.room(n, seen), self.v.room(n, seen));
        scratch::with(n.group * seen + for_k.max(for_v), |buffer| {
            let (w, room) = buffer.split_at_mut(n.group * seen);
            self.k.scores(n, g, q, seen, w, room);
            for (w, stats) in w.chunks_exact_mut(seen).zip(stats.chunks_exact_mut(2)) {
                (stats[0], stats[1]) = weigh(w, mask, n.scale);
            }
            self.v.weighted(n, g, w, seen, o, room);
            for (o, stats) in o.chunks_exact_mut(n.d).zip(stats.chunks_exact(2)) {
                o.iter_mut().for_each(|o| *o *= stats[1]);
            }
        });
    }

    /// Few sequences leave threads idle: then KV heads go side by side, or parts of a sequence's rows where there are fewer
    /// heads than threads.
    fn parts(&self, n: &Dims, tile: Tile, sequences: usize, o: &mut [f32], stats: &mut [f32]) {
        let (threads, groups) = (rayon::current_num_threads(), n.heads / n.group);
        if sequences >= threads {
            return self.forward(n, tile, 0..groups, Place { o, width: n.width, stats, heads: n.heads });
        }
        if groups >= threads {
            return self.heads(n, tile, o, stats);
        }
        let rows = n.q_len.div_ceil(2 * threads).next_multiple_of(GROUP);
        let parts = o.par_chunks_mut(rows * n.width).zip(stats.par_chunks_mut(rows * n.heads * 2)).enumerate();
        parts.for_each(|(part, (o, stats))| {
            let (first, last) = (part * rows, n.q_len.min((part + 1) * rows));
            let of = Sequence { q: &self.q[first * n.width..last * n.width], pos: &self.pos[first..last], ..*self };
            of.forward(n, tile, 0..groups, Place { o, width: n.width, stats, heads: n.heads });
        });
    }

    /// Keys and values of a head are converted and packed once, for all rows. What it gives lies apart until all are done: heads
    /// stand side by side in a row.
    fn heads(&self, n: &Dims, tile: Tile, o: &mut [f32], stats: &mut [f32]) {
        let (rows, width) = (self.pos.len(), n.group * n.d);
        let size = rows * (width + 2 * n.group);
        scratch::with(n.heads / n.group * size, |buffer| {
            buffer.par_chunks_mut(size).enumerate().for_each(|(g, part)| {
                let (o, stats) = part.split_at_mut(rows * width);
                self.forward(n, tile, g..g + 1, Place { o, width, stats, heads: n.group });
            });
            for (g, part) in buffer.chunks_exact(size).enumerate() {
                let (of, of_stats) = part.split_at(rows * width);
                for (o, of) in o.chunks_exact_mut(n.width).zip(of.chunks_exact(width)) {
                    o[g * width..(g + 1) * width].copy_from_slice(of);
                }
                for (stats, of) in stats.chunks_exact_mut(2 * n.heads).zip(of_stats.chunks_exact(2 * n.group)) {
                    // The second of a pair is another pass's.
                    let pairs = stats[2 * g * n.group..].chunks_exact_mut(2).zip(of.chunks_exact(2));
                    pairs.for_each(|(stats, of)| stats[0] = of[0]);
                }
            }
        });
    }

    fn forward(&self, n: &Dims, tile: Tile, groups: Range<usize>, to: Place<'_>) {
        let seen = self.pos.iter().max().map_or(0, |p| *p as usize + 1);
        let (kp, vp) = (panel_floats(tile, seen, n.d), panel_floats(tile, n.d, seen));
        let room = self.k.room(n, seen).max(self.v.room(n, seen));
        scratch::with(kp + vp + GROUP * seen + room + tile.mr * seen.max(n.d), |buffer| {
            let (room, buffer) = buffer.split_at_mut(room);
            let (keys, rest) = buffer.split_at_mut(kp);
            let (values, rest) = rest.split_at_mut(vp);
            let (scores, left) = rest.split_at_mut(GROUP * seen);
            let Place { o, width, stats, heads } = to;
            let first = groups.start * n.group;
            for g in groups {
                let k = self.k.head(n, g, seen, room);
                let keys = pack_right(tile, Operand::KContiguous(k.data, k.ld), seen, n.d, keys);
                let v = self.v.head(n, g, seen, room);
                let values = pack_right(tile, Operand::OuterContiguous(v.data, v.ld), n.d, seen, values);
                for (h, i0) in pairs(n, g, self.pos.len()) {
                    let pos = &self.pos[i0..self.pos.len().min(i0 + GROUP)];
                    let (rows, row) = (pos.len(), i0 * n.width + h * n.d);
                    let at = i0 * width + (h - first) * n.d;
                    let seen = pos.iter().max().map_or(0, |p| *p as usize + 1);
                    let q = Operand::KContiguous(&self.q[row..], n.width);
                    small(tile, q, rows, keys, seen, n.d, left, Out { c: scores, ld: seen, fresh: true });
                    for (i, (line, pos)) in scores.chunks_exact_mut(seen).zip(pos).enumerate() {
                        let span = *pos as usize + 1;
                        line[span..].fill(0.0);
                        stats[((i0 + i) * heads + h - first) * 2] = softmax(&mut line[..span], &self.mask[..span], n.scale);
                    }
                    let out = Out { c: &mut o[at..], ld: width, fresh: true };
                    small(tile, Operand::KContiguous(scores, seen), rows, values, n.d, seen, left, out);
                }
            }
        });
    }
}

/// The query heads of KV head `g` and the first rows of their groups, both ascending.
fn pairs(n: &Dims, g: usize, rows: usize) -> impl Iterator<Item = (usize, usize)> {
    (g * n.group..(g + 1) * n.group).flat_map(move |h| (0..rows).step_by(GROUP).map(move |i0| (h, i0)))
}

crate::simd! {
    /// Turns products into weights that sum to one; gives the log-sum-exp.
    fn softmax(w: &mut [f32], mask: &[u32], scale: f32) -> f32 {
        for (w, m) in w.iter_mut().zip(mask) {
            *w = if *m == 0 { f32::NEG_INFINITY } else { *w * scale };
        }
        let top = max(w);
        if top == f32::NEG_INFINITY {
            w.fill(0.0);
            return top;
        }
        for (w, m) in w.iter_mut().zip(mask) {
            let e = exp(*w - top);
            *w = if *m == 0 { 0.0 } else { e };
        }
        let total = sum(w, |x| x);
        let inverse = 1.0 / total;
        for w in w.iter_mut() {
            *w *= inverse;
        }
        top + ln(total)
    }

    /// Turns products into weights; gives the log-sum-exp and the inverse of the weights' sum (0 where no key is seen).
    fn weigh(w: &mut [f32], mask: &[u32], scale: f32) -> (f32, f32) {
        for (w, m) in w.iter_mut().zip(mask) {
            *w = if *m == 0 { f32::NEG_INFINITY } else { *w * scale };
        }
        let top = max(w);
        if top == f32::NEG_INFINITY {
            w.fill(0.0);
            return (top, 0.0);
        }
        for (w, m) in w.iter_mut().zip(mask) {
            let e = exp(*w - top);
            *w = if *m == 0 { 0.0 } else { e };
        }
        let total = sum(w, |x| x);
        (top + ln(total), 1.0 / total)
    }

    /// In place: products to weights `p_j`, and `do·v_j` to score gradients `ds_j·scale`.
    fn row_grads(p: &mut [f32], ds: &mut [f32], mask: &[u32], lse: f32, delta: f32, scale: f32) {
        for ((p, ds), m) in p.iter_mut().zip(ds).zip(mask) {
            let e = exp(p.mul_add(scale, -lse));
            *p = if *m == 0 { 0.0 } else { e };
            *ds = *p * (*ds - delta) * scale;
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

/// Inputs of the backward pass.
struct Backward<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    mask: &'a [u32],
    do_: &'a [f32],
    stats: &'a [f32],
    n: Dims,
    tile: Tile,
    /// Whether the products sum over keys.
    over_keys: bool,
}

/// Weights and score gradients of a group of rows: `[rows, keys]` each, for rows `first ..` of the sequence; the keys of
/// their KV head as the right operand of a sum over keys, where there is one.
struct Rows<'a> {
    head: usize,
    first: usize,
    rows: usize,
    keys: usize,
    p: &'a [f32],
    ds: &'a [f32],
    summed: Panels<'a>,
}

impl<'a> Backward<'a> {
    fn new(s: &Shape, tile: Tile, [q, k, v, mask, do_, stats]: [Buf<'a>; 6], over_keys: bool) -> Self {
        let (q, k, v, do_, stats) = (q.f32(), k.f32(), v.f32(), do_.f32(), stats.f32());
        Self { q, k, v, mask: mask.u32(), do_, stats, n: dims(s), tile, over_keys }
    }
    /// Calls `visit` for the heads and groups of rows of sequence `b`, both ascending; `left` is scratch for packing.
    fn rows(&self, b: usize, mut visit: impl FnMut(Rows<'_>, &mut [f32])) {
        let (n, tile) = (&self.n, self.tile);
        let t = n.q_len;
        let first_key = b * n.kv_len;
        let (panels, turned) = (panel_floats(tile, t, n.d), panel_floats(tile, n.d, t));
        scratch::with(2 * panels + 2 * GROUP * t + (tile.mr + tile.nr) * (t + n.d) * 2 + 2 * turned, |buffer| {
            let (keys, rest) = buffer.split_at_mut(panels);
            let (values, rest) = rest.split_at_mut(panels);
            let (summed, rest) = rest.split_at_mut(turned);
            let (p, rest) = rest.split_at_mut(GROUP * t);
            let (ds, left) = rest.split_at_mut(GROUP * t);
            for g in 0..n.heads / n.group {
                let at = first_key * n.kv + g * n.d;
                let (k, v) = (&self.k[at..], &self.v[at..]);
                let keys = pack_right(tile, Operand::KContiguous(k, n.kv), t, n.d, keys);
                let values = pack_right(tile, Operand::KContiguous(v, n.kv), t, n.d, values);
                let of_sum = Operand::OuterContiguous(k, n.kv);
                let summed = if self.over_keys { pack_right(tile, of_sum, n.d, t, summed) } else { Panels::default() };
                for (h, i0) in pairs(n, g, t) {
                    let rows = GROUP.min(t - i0);
                    let seen = i0 + rows;
                    let row = (b * t + i0) * n.width + h * n.d;
                    let (p, ds) = (&mut p[..rows * seen], &mut ds[..rows * seen]);
                    for (x, panels, out) in [(self.q, keys, &mut *p), (self.do_, values, &mut *ds)] {
                        let x = Operand::KContiguous(&x[row..], n.width);
                        small(tile, x, rows, panels, seen, n.d, left, Out { c: out, ld: seen, fresh: true });
                    }
                    for i in 0..rows {
                        let span = i0 + i + 1;
                        let stats = &self.stats[((b * t + i0 + i) * n.heads + h) * 2..][..2];
                        let (p, ds) = (&mut p[i * seen..(i + 1) * seen], &mut ds[i * seen..(i + 1) * seen]);
                        p[span..].fill(0.0);
                        ds[span..].fill(0.0);
                        row_grads(&mut p[..span], &mut ds[..span], &self.mask[first_key..first_key + span], stats[0], stats[1], n.scale);
                    }
                    visit(Rows { head: h, first: i0, rows, keys: seen, p, ds, summed }, left);
                }
            }
        });
    }
}

pub(crate) fn grad_q(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [q, k, v, mask, do_, stats, dq] = bufs.take();
    let tile = tile::best();
    let ops = Backward::new(&s, tile, [q, k, v, mask, do_, stats], true);
    let n = &ops.n;
    dq.f32_mut()[..s.rows as usize * n.width].par_chunks_mut(n.q_len * n.width).enumerate().for_each(|(b, dq)| {
        ops.rows(b, |r, left| {
            let out = Out { c: &mut dq[r.first * n.width + r.head * n.d..], ld: n.width, fresh: true };
            small(tile, Operand::KContiguous(r.ds, r.keys), r.rows, r.summed, n.d, r.keys, left, out);
        });
    });
}

pub(crate) fn grad_kv(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [q, k, v, mask, do_, stats, dk, dv] = bufs.take();
    let tile = tile::best();
    let ops = Backward::new(&s, tile, [q, k, v, mask, do_, stats], false);
    let n = &ops.n;
    let size = n.kv_len * n.kv;
    let total = (s.rows / s.q_len) as usize * size;
    let sequences = dk.f32_mut()[..total].par_chunks_mut(size).zip(dv.f32_mut()[..total].par_chunks_mut(size)).enumerate();
    sequences.for_each(|(b, (dk, dv))| {
        dk.fill(0.0);
        dv.fill(0.0);
        ops.rows(b, |r, scratch| {
            let row = (b * n.q_len + r.first) * n.width + r.head * n.d;
            let g = r.head / n.group * n.d;
            let (right, left) = scratch.split_at_mut(panel_floats(tile, n.d, r.rows));
            for (weights, rows, out) in [(r.ds, ops.q, &mut *dk), (r.p, ops.do_, &mut *dv)] {
                let right = pack_right(tile, Operand::OuterContiguous(&rows[row..], n.width), n.d, r.rows, right);
                let out = Out { c: &mut out[g..], ld: n.kv, fresh: false };
                small(tile, Operand::OuterContiguous(weights, r.keys), r.keys, right, n.d, r.rows, left, out);
            }
        });
    });
}
