//! CPU twins of the gated activation.

use rayon::prelude::*;

use super::Shape;
use crate::kernel::{Bufs, Params};
use crate::simd::math::exp;

const CHUNK: usize = 4096;

pub(crate) fn forward(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [gate, up, y] = bufs.take();
    let n = s.n as usize;
    let chunks = y.f32_mut()[..n].par_chunks_mut(CHUNK).zip(gate.f32().par_chunks(CHUNK)).zip(up.f32().par_chunks(CHUNK));
    chunks.for_each(|((y, g), u)| activate(s.act, g, u, y));
}

/// `y = act(gate)·up`.
pub(crate) fn activate(act: u32, gate: &[f32], up: &[f32], y: &mut [f32]) {
    if act == 0 { silu(gate, up, y) } else { relu2(gate, up, y) }
}

pub(crate) fn backward(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [gate, up, dy, dgate, dup] = bufs.take();
    let n = s.n as usize;
    let outs = dgate.f32_mut()[..n].par_chunks_mut(CHUNK).zip(dup.f32_mut()[..n].par_chunks_mut(CHUNK));
    let ins = gate.f32().par_chunks(CHUNK).zip(up.f32().par_chunks(CHUNK)).zip(dy.f32().par_chunks(CHUNK));
    outs.zip(ins).for_each(|((dg, du), ((g, u), dy))| if s.act == 0 { silu_grad(g, u, dy, dg, du) } else { relu2_grad(g, u, dy, dg, du) });
}

crate::simd! {
    fn silu(g: &[f32], u: &[f32], y: &mut [f32]) {
        for ((y, g), u) in y.iter_mut().zip(g).zip(u) {
            *y = g / (1.0 + exp(-g)) * u;
        }
    }

    fn relu2(g: &[f32], u: &[f32], y: &mut [f32]) {
        for ((y, g), u) in y.iter_mut().zip(g).zip(u) {
            let r = if *g < 0.0 { 0.0 } else { *g };
            *y = r * r * u;
        }
    }

    fn silu_grad(g: &[f32], u: &[f32], dy: &[f32], dg: &mut [f32], du: &mut [f32]) {
        for ((((dg, du), g), u), dy) in dg.iter_mut().zip(du).zip(g).zip(u).zip(dy) {
            let sig = 1.0 / (1.0 + exp(-g));
            let act = g * sig;
            *du = dy * act;
            *dg = dy * u * act.mul_add(1.0 - sig, sig);
        }
    }

    fn relu2_grad(g: &[f32], u: &[f32], dy: &[f32], dg: &mut [f32], du: &mut [f32]) {
        for ((((dg, du), g), u), dy) in dg.iter_mut().zip(du).zip(g).zip(u).zip(dy) {
            let r = if *g < 0.0 { 0.0 } else { *g };
            *du = dy * r * r;
            *dg = dy * u * 2.0 * r;
        }
    }
}
