//! CPU twins of RMSNorm.

use rayon::prelude::*;

use super::Shape;
use crate::kernel::{Bufs, Params};
use crate::simd::math::{LANES, fold, squares};

pub(crate) fn forward(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [x, g, y, rstd] = bufs.take();
    let (x, g, cols) = (x.f32(), g.f32(), s.cols as usize);
    let rows = y.f32_mut().par_chunks_mut(cols).zip(x.par_chunks(cols)).zip(rstd.f32_mut());
    rows.take(s.rows as usize).for_each(|((y, x), rstd)| *rstd = forward_row(x, g, s.eps, y));
}

pub(crate) fn grad_x(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [x, g, rstd, dy, dx] = bufs.take();
    let (x, g, dy, cols) = (x.f32(), g.f32(), dy.f32(), s.cols as usize);
    let rows = dx.f32_mut().par_chunks_mut(cols).zip(x.par_chunks(cols)).zip(dy.par_chunks(cols)).zip(rstd.f32());
    rows.take(s.rows as usize).for_each(|(((dx, x), dy), rstd)| grad_x_row(x, g, dy, *rstd, s.add == 1, dx));
}

pub(crate) fn grad_g(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [x, rstd, dy, dg] = bufs.take();
    let (x, rstd, dy) = (x.f32(), rstd.f32(), dy.f32());
    let cols = s.cols as usize;
    // Columns in parallel, rows ascending: the order of every sum is that of the formula.
    dg.f32_mut()[..cols].par_chunks_mut(64).enumerate().for_each(|(i, dg)| grad_g_part(x, rstd, dy, cols, i * 64, s.rows as usize, dg));
}

crate::simd! {
    /// Norms a row; gives its rstd.
    pub(crate) fn forward_row(x: &[f32], g: &[f32], eps: f32, y: &mut [f32]) -> f32 {
        let rstd = 1.0 / (squares(x) / x.len() as f32 + eps).sqrt();
        for ((y, x), g) in y.iter_mut().zip(x).zip(g) {
            *y = x * rstd * g;
        }
        rstd
    }

    fn grad_x_row(x: &[f32], g: &[f32], dy: &[f32], rstd: f32, add: bool, dx: &mut [f32]) {
        let mut acc = [0f32; LANES];
        let ((xs, rest), (gs, rest_g), (dys, rest_dy)) = (x.as_chunks::<LANES>(), g.as_chunks::<LANES>(), dy.as_chunks::<LANES>());
        for ((x, g), dy) in xs.iter().zip(gs).zip(dys) {
            for l in 0..LANES {
                acc[l] = (dy[l] * g[l]).mul_add(x[l], acc[l]);
            }
        }
        for (l, acc) in acc.iter_mut().enumerate() {
            if let (Some(x), Some(g), Some(dy)) = (rest.get(l), rest_g.get(l), rest_dy.get(l)) {
                *acc = (dy * g).mul_add(*x, *acc);
            }
        }
        let c = fold(acc) * rstd * rstd * rstd / x.len() as f32;
        for (((dx, x), g), dy) in dx.iter_mut().zip(x).zip(g).zip(dy) {
            let d = (rstd * dy).mul_add(*g, -(x * c));
            *dx = if add { *dx + d } else { d };
        }
    }

    fn grad_g_part(x: &[f32], rstd: &[f32], dy: &[f32], cols: usize, first: usize, rows: usize, dg: &mut [f32]) {
        for (r, rstd) in rstd.iter().enumerate().take(rows) {
            let at = r * cols + first;
            for ((d, x), dy) in dg.iter_mut().zip(&x[at..]).zip(&dy[at..]) {
                *d = (dy * x).mul_add(*rstd, *d);
            }
        }
    }
}
