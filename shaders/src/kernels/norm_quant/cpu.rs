//! CPU twins: the rows of the single kernels, one after the other while a row is in the nearest cache.

use rayon::prelude::*;

use super::Shape;
use crate::kernel::{Bufs, Params};
use crate::kernels::act_quant::{RowScale, cpu as act_quant};
use crate::kernels::gated::cpu::activate;
use crate::kernels::{hyper, rmsnorm::cpu as rmsnorm};
use crate::simd::scratch;

/// Where a row's results go.
struct Out<'a> {
    q: &'a mut [u32],
    scale: &'a mut RowScale,
    rstd: &'a mut f32,
}

/// Norms and quantises `x`.
fn row(s: &Shape, qmax: f32, x: &[f32], g: &[f32], out: Out<'_>) {
    scratch::with(x.len(), |normed| {
        *out.rstd = rmsnorm::forward_row(x, g, s.eps, normed);
        *out.scale = act_quant::row(normed, qmax, bytemuck::cast_slice_mut(out.q));
    });
}

pub(crate) fn norm_quant(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [x, g, hyper, q, scales, rstd] = bufs.take();
    let (g, qmax) = (g.f32(), hyper.f32()[hyper::QMAX]);
    let rows = x.f32().par_chunks_exact(s.cols as usize).zip(outs(&s, q.u32_mut(), scales.u32_mut(), rstd.f32_mut()));
    rows.for_each(|(x, out)| row(&s, qmax, x, g, out));
}

pub(crate) fn gated_norm_quant(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [gate, up, g, hyper, y, q, scales, rstd] = bufs.take();
    let (g, qmax, cols) = (g.f32(), hyper.f32()[hyper::QMAX], s.cols as usize);
    let ins = gate.f32().par_chunks_exact(cols).zip(up.f32().par_chunks_exact(cols)).zip(y.f32_mut().par_chunks_exact_mut(cols));
    ins.zip(outs(&s, q.u32_mut(), scales.u32_mut(), rstd.f32_mut())).for_each(|(((gate, up), y), out)| {
        activate(s.act, gate, up, y);
        row(&s, qmax, y, g, out);
    });
}

fn outs<'a>(
    s: &Shape,
    q: &'a mut [u32],
    scales: &'a mut [u32],
    rstd: &'a mut [f32],
) -> impl IndexedParallelIterator<Item = Out<'a>> + use<'a> {
    let scales: &mut [RowScale] = bytemuck::cast_slice_mut(scales);
    let rows = q.par_chunks_exact_mut(s.words as usize).zip(scales).zip(rstd).take(s.rows as usize);
    rows.map(|((q, scale), rstd)| Out { q, scale, rstd })
}
