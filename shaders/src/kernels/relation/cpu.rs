//! CPU twins of attention relations: a head of a sequence at a time, its real rows side by side, its scores as small products
//! through the register tiles of `gemm`. Every score and every gradient is a chain of fused multiply-adds in ascending order
//! of what it sums over.

use rayon::prelude::*;

use super::Shape;
use crate::kernel::{Bufs, Params};
use crate::kernels::gemm::cpu::small;
use crate::kernels::gemm::pack::{Operand, Panels, pack_right, panel_floats};
use crate::kernels::gemm::tile::{self, Out, Tile};
use crate::simd::math::{dot, exp, ln, max, sum};
use crate::simd::scratch;

/// Rows whose scores are held at a time: a multiple of every tile's height.
const GROUP: usize = 48;

/// What the heads of all sequences have in common; pairs are student and teacher.
struct Dims {
    q_len: usize,
    heads: usize,
    width: [usize; 2],
    /// Floats of a head.
    d: [usize; 2],
    scale: [f32; 2],
    tile: Tile,
}

impl Dims {
    fn of(s: &Shape) -> Self {
        let (heads, width) = (s.heads as usize, [s.width_s as usize, s.width_t as usize]);
        Self { q_len: s.q_len as usize, heads, width, d: width.map(|w| w / heads), scale: [s.scale_s, s.scale_t], tile: tile::best() }
    }

    /// Floats of one side of a head with `len` real rows: the rows, and the same packed.
    fn side_floats(&self, side: usize, len: usize) -> usize {
        len * self.d[side] + panel_floats(self.tile, len, self.d[side])
    }

    /// Floats that a product of `len` rows packs.
    fn left_floats(&self, len: usize) -> usize {
        self.tile.mr * len.max(self.d[0]).max(self.d[1]).max(GROUP)
    }
}

/// The real rows of a sequence, and all rows of both sides.
struct Sequence<'a> {
    x: [&'a [f32]; 2],
    real: Vec<usize>,
}

impl<'a> Sequence<'a> {
    fn new(n: &Dims, b: usize, x: [&'a [f32]; 2], mask: &[u32]) -> Self {
        let rows = b * n.q_len..(b + 1) * n.q_len;
        Self { x, real: rows.filter(|r| mask[*r] != 0).collect() }
    }

    /// One side of head `a`, in the first floats of a buffer; and the others.
    fn side<'b>(&self, n: &Dims, side: usize, a: usize, buffer: &'b mut [f32]) -> (Side<'b>, &'b mut [f32]) {
        let (len, d, width) = (self.real.len(), n.d[side], n.width[side]);
        let (buffer, rest) = buffer.split_at_mut(n.side_floats(side, len));
        let (x, panels) = buffer.split_at_mut(len * d);
        for (x, r) in x.chunks_exact_mut(d).zip(&self.real) {
            x.copy_from_slice(&self.x[side][r * width + a * d..][..d]);
        }
        let panels = pack_right(n.tile, Operand::KContiguous(x, d), len, d, panels);
        (Side { x, d, panels, tile: n.tile }, rest)
    }
}

/// The real rows of a head `[len, d]`, and the same as the right operand of their products with each other.
struct Side<'a> {
    x: &'a [f32],
    d: usize,
    panels: Panels<'a>,
    tile: Tile,
}

impl Side<'_> {
    /// Products of the rows from `first` on with the first `seen` ones, as many rows as `out` holds of them.
    fn products(&self, first: usize, seen: usize, out: &mut [f32], left: &mut [f32]) {
        let rows = Operand::KContiguous(&self.x[first * self.d..], self.d);
        small(self.tile, rows, out.len() / seen, self.panels, seen, self.d, left, Out { c: out, ld: seen, fresh: true });
    }
}

pub(crate) fn forward(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [x_s, x_t, mask, stats, losses] = bufs.take();
    let (x, mask, rows, n) = ([x_s.f32(), x_t.f32()], mask.u32(), s.rows as usize, Dims::of(&s));
    let sequences = stats.f32_mut()[..rows * n.heads * 2]
        .par_chunks_mut(n.q_len * n.heads * 2)
        .zip(losses.f32_mut()[..rows * 4].par_chunks_mut(n.q_len * 4))
        .enumerate();
    sequences.for_each(|(b, (stats, losses))| {
        stats.fill(0.0);
        losses.fill(0.0);
        let of = Sequence::new(&n, b, x, mask);
        let len = of.real.len();
        // Heads side by side: each one's rows are together until all are done.
        scratch::with(3 * len * n.heads, |of_heads| {
            of_heads.par_chunks_mut((3 * len).max(1)).enumerate().for_each(|(a, out)| forward_head(&n, &of, a, out));
            for (a, of_head) in of_heads.chunks_exact((3 * len).max(1)).enumerate() {
                for ([lse_s, lse_t, kl], r) in of_head.as_chunks().0.iter().zip(&of.real) {
                    let r = r - b * n.q_len;
                    stats[2 * (r * n.heads + a)..][..2].copy_from_slice(&[*lse_s, *lse_t]);
                    losses[4 * r] += kl;
                }
            }
        });
    });
}

/// (lse_s, lse_t, kl) of each real row in head `a`.
fn forward_head(n: &Dims, of: &Sequence<'_>, a: usize, out: &mut [f32]) {
    let len = of.real.len();
    let floats = n.side_floats(0, len) + n.side_floats(1, len) + 2 * GROUP * len + n.left_floats(len);
    scratch::with(floats, |buffer| {
        let (student, rest) = of.side(n, 0, a, buffer);
        let (teacher, rest) = of.side(n, 1, a, rest);
        let (s, rest) = rest.split_at_mut(GROUP * len);
        let (t, left) = rest.split_at_mut(GROUP * len);
        for (group, out) in out.chunks_mut(3 * GROUP).enumerate() {
            let size = out.len() / 3 * len;
            let (s, t) = (&mut s[..size], &mut t[..size]);
            student.products(group * GROUP, len, s, left);
            teacher.products(group * GROUP, len, t, left);
            let rows = s.chunks_exact_mut(len).zip(t.chunks_exact_mut(len));
            rows.zip(out.chunks_exact_mut(3)).for_each(|((s, t), out)| out.copy_from_slice(&compare(s, t, n.scale)));
        }
    });
}

pub(crate) fn grad(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [x_s, x_t, mask, stats, meta, dx] = bufs.take();
    let (x, mask, n) = ([x_s.f32(), x_t.f32()], mask.u32(), Dims::of(&s));
    let (stats, meta, [width, _], [d, _]) = (stats.f32(), meta.f32(), n.width, n.d);
    dx.f32_mut()[..s.rows as usize * width].par_chunks_mut(n.q_len * width).enumerate().for_each(|(b, dx)| {
        let of = Sequence::new(&n, b, x, mask);
        let len = of.real.len();
        scratch::with(len * width, |of_heads| {
            of_heads.par_chunks_mut((len * d).max(1)).enumerate().for_each(|(a, out)| grad_head(&n, &of, a, stats, meta, out));
            for (a, of_head) in of_heads.chunks_exact((len * d).max(1)).enumerate() {
                for (of_row, r) in of_head.chunks_exact(d).zip(&of.real) {
                    let dx = &mut dx[(r - b * n.q_len) * width + a * d..][..d];
                    dx.iter_mut().zip(of_row).for_each(|(dx, g)| *dx = n.scale[0].mul_add(*g, *dx));
                }
            }
        });
    });
}

/// `Σ_u [w_t (p_s(t, u) − p_t(t, u)) + w_u (p_s(u, t) − p_t(u, t))] x_s[u]` of the real rows in head `a`, `[len, d_s]`.
///
/// The factors are symmetric: those of a group of rows with the rows up to its end serve both, and each sum stays ascending
/// in u, because a row's own group comes before the later ones.
fn grad_head(n: &Dims, of: &Sequence<'_>, a: usize, stats: &[f32], meta: &[f32], out: &mut [f32]) {
    let (len, tile, [d, _]) = (of.real.len(), n.tile, n.d);
    let (turned, of_group) = (panel_floats(tile, d, len), panel_floats(tile, d, GROUP));
    let floats = n.side_floats(0, len) + n.side_floats(1, len) + 3 * len + turned + of_group + 2 * GROUP * len + n.left_floats(len);
    scratch::with(floats, |buffer| {
        let (student, rest) = of.side(n, 0, a, buffer);
        let (teacher, rest) = of.side(n, 1, a, rest);
        let (rows, rest) = rest.split_at_mut(3 * len);
        let rows = Rows::of(n, of, a, stats, meta, rows);
        if rows.odd() {
            return out.fill(f32::NAN);
        }
        let (turned, rest) = rest.split_at_mut(turned);
        let turned = pack_right(tile, Operand::OuterContiguous(student.x, d), d, len, turned);
        let (of_group, rest) = rest.split_at_mut(of_group);
        let (s, rest) = rest.split_at_mut(GROUP * len);
        let (t, left) = rest.split_at_mut(GROUP * len);
        for first in (0..len).step_by(GROUP) {
            let seen = len.min(first + GROUP);
            let count = seen - first;
            let (s, t) = (&mut s[..count * seen], &mut t[..count * seen]);
            student.products(first, seen, s, left);
            teacher.products(first, seen, t, left);
            for (i, (s, t)) in s.chunks_exact_mut(seen).zip(t.chunks_exact(seen)).enumerate() {
                factors(s, t, rows.one(first + i), rows.lse_s, rows.lse_t, rows.weights, n.scale);
            }
            let (earlier, own) = out.split_at_mut(first * d);
            small(tile, Operand::KContiguous(s, seen), count, turned, d, seen, left, Out { c: own, ld: d, fresh: true });
            if first > 0 {
                let x = Operand::OuterContiguous(&student.x[first * d..], d);
                let right = pack_right(tile, x, d, count, of_group);
                let out = Out { c: earlier, ld: d, fresh: false };
                small(tile, Operand::OuterContiguous(s, seen), first, right, d, count, left, out);
            }
        }
    });
}

/// What the gradient needs of each real row in a head.
struct Rows<'a> {
    lse_s: &'a [f32],
    lse_t: &'a [f32],
    weights: &'a [f32],
}

impl<'a> Rows<'a> {
    fn of(n: &Dims, of: &Sequence<'_>, a: usize, stats: &[f32], meta: &[f32], buffer: &'a mut [f32]) -> Self {
        let (lse_s, rest) = buffer.split_at_mut(of.real.len());
        let (lse_t, weights) = rest.split_at_mut(of.real.len());
        for (i, r) in of.real.iter().enumerate() {
            let of_head = 2 * (r * n.heads + a);
            (lse_s[i], lse_t[i], weights[i]) = (stats[of_head], stats[of_head + 1], meta[4 * r + 1]);
        }
        Self { lse_s, lse_t, weights }
    }

    /// Whether some score was not finite.
    fn odd(&self) -> bool {
        !self.lse_s.iter().chain(self.lse_t).all(|lse| lse.is_finite())
    }

    /// (lse_s, lse_t, weight) of a row.
    fn one(&self, i: usize) -> [f32; 3] {
        [self.lse_s[i], self.lse_t[i], self.weights[i]]
    }
}

crate::simd! {
    /// (lse_s, lse_t, kl) of a row's products, which are lost.
    fn compare(s: &mut [f32], t: &mut [f32], scale: [f32; 2]) -> [f32; 3] {
        for (s, t) in s.iter_mut().zip(t.iter_mut()) {
            *s *= scale[0];
            *t *= scale[1];
        }
        // NaN where one of them is not finite, else 0.
        if (sum(s, |x| x * 0.0) + sum(t, |x| x * 0.0)).is_nan() {
            return [f32::NAN; 3];
        }
        let (top_s, top_t) = (max(s), max(t));
        let total_s = sum(s, |x| exp(x - top_s));
        for (s, t) in s.iter_mut().zip(t.iter_mut()) {
            let shifted = *t - top_t;
            *s = shifted - (*s - top_s);
            *t = exp(shifted);
        }
        let total_t = sum(t, |x| x);
        let (ln_s, ln_t) = (ln(total_s), ln(total_t));
        [top_s + ln_s, top_t + ln_t, dot(t, s) / total_t - (ln_t - ln_s)]
    }

    /// Products of a row with others become what those others weigh in its gradient; `one`: (lse_s, lse_t, weight) of the
    /// row. The same bits from the other row's side.
    fn factors(s: &mut [f32], t: &[f32], one: [f32; 3], lse_s: &[f32], lse_t: &[f32], weights: &[f32], scale: [f32; 2]) {
        let others = lse_s.iter().zip(lse_t).zip(weights);
        for ((s, t), ((lse_s, lse_t), weight)) in s.iter_mut().zip(t).zip(others) {
            let (of_s, of_t) = (*s * scale[0], *t * scale[1]);
            let forth = one[2] * (exp(of_s - one[0]) - exp(of_t - one[1]));
            let back = weight * (exp(of_s - lse_s) - exp(of_t - lse_t));
            *s = forth + back;
        }
    }
}
