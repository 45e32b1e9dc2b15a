//! CPU twins of Muon's elementwise parts; its products are `gemm`.

use rayon::prelude::*;

use super::{GRAM_EPS, Momentum, Normalise, Poly, Update};
use crate::kernel::{Bufs, Params};
use crate::kernels::{clip, hyper};

const CHUNK: usize = 16_384;

pub(crate) fn momentum(p: &Params, bufs: Bufs<'_>) {
    let n = p.get::<Momentum>().n as usize;
    let [hyper, clip, g, b, u] = bufs.take();
    let (mu, clip) = (hyper.f32()[hyper::MUON_MOMENTUM], clip.f32());
    let u = &mut u.f32_mut()[..n];
    if clip[2] != 0.0 {
        u.fill(0.0);
        return;
    }
    let state = b.f32_mut()[..n].par_chunks_mut(CHUNK).zip(u.par_chunks_mut(CHUNK));
    state.zip(g.f32().par_chunks(CHUNK)).for_each(|((b, u), g)| nesterov(mu, clip[1], g, b, u));
}

crate::simd! {
    fn nesterov(mu: f32, factor: f32, g: &[f32], b: &mut [f32], u: &mut [f32]) {
        for ((b, u), g) in b.iter_mut().zip(u).zip(g) {
            let g = g * factor;
            *b = mu.mul_add(*b, g);
            *u = mu.mul_add(*b, g);
        }
    }

    fn scaled(x: &[f32], factor: f32, y: &mut [f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = x * factor;
        }
    }

    fn apply(x: &[f32], keep: f32, rate: f32, w: &mut [f32]) {
        for (w, x) in w.iter_mut().zip(x) {
            *w = *w * keep - rate * x;
        }
    }

    fn combine(g: &[f32], g2: &[f32], b: f32, c: f32, out: &mut [f32]) {
        for ((o, g), g2) in out.iter_mut().zip(g).zip(g2) {
            *o = b.mul_add(*g, c * g2);
        }
    }
}

pub(crate) fn normalise(p: &Params, bufs: Bufs<'_>) {
    let s: Normalise = p.get();
    let [u, partials, x] = bufs.take();
    let factor = 1.0 / (clip::cpu::norm(&partials.f32()[..s.partials as usize]) + s.eps);
    let x = x.f32_mut()[..s.n as usize].par_chunks_mut(CHUNK);
    x.zip(u.f32().par_chunks(CHUNK)).for_each(|(x, u)| scaled(u, factor, x));
}

pub(crate) fn poly(p: &Params, bufs: Bufs<'_>) {
    let s: Poly = p.get();
    let [g, g2, out] = bufs.take();
    let n = s.n as usize;
    let out = &mut out.f32_mut()[..n * n];
    combine(&g.f32()[..n * n], g2.f32(), s.b, s.c, out);
    for i in 0..n {
        out[i * n + i] += s.a;
    }
}

pub(crate) fn update(p: &Params, bufs: Bufs<'_>) {
    let s: Update = p.get();
    let [hyper, clip, partials, x, w] = bufs.take();
    if clip.f32()[2] != 0.0 {
        return;
    }
    let hyper = hyper.f32();
    let keep = 1.0 - hyper[hyper::MUON_LR] * hyper[hyper::MUON_DECAY];
    let divisor = match s.partials {
        0 => 1.0,
        n => (clip::cpu::norm(&partials.f32()[..n as usize]) + GRAM_EPS).sqrt(),
    };
    let rate = hyper[hyper::MUON_LR] * s.factor / divisor;
    let w = w.f32_mut()[..s.n as usize].par_chunks_mut(CHUNK);
    w.zip(x.f32().par_chunks(CHUNK)).for_each(|(w, x)| apply(x, keep, rate, w));
}
