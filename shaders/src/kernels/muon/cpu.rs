//! CPU twins of Muon's elementwise parts; its products are `gemm`.

use rayon::prelude::*;

use super::{GRAM_EPS, Momentum, Normalise, Poly, Scale};
use crate::kernel::{Bufs, Params};
use crate::kernels::{clip, hyper};

const CHUNK: usize = 16_384;

pub(crate) fn momentum(p: &Params, bufs: Bufs<'_>) {
    let n = p.get::<Momentum>().n as usize;
    let [hyper, clip, g, b, w, u] = bufs.take();
    let (hyper, clip) = (hyper.f32(), clip.f32());
    let mu = hyper[hyper::MUON_MOMENTUM];
    let u = &mut u.f32_mut()[..n];
    if clip[2] != 0.0 {
        u.fill(0.0);
        return;
    }
    let state = b.f32_mut()[..n].par_chunks_mut(CHUNK).zip(u.par_chunks_mut(CHUNK));
    state.zip(g.f32().par_chunks(CHUNK)).for_each(|((b, u), g)| nesterov(mu, clip[1], g, b, u));
    if hyper[hyper::MUON_DECAY] != 0.0 {
        let keep = 1.0 - hyper[hyper::MUON_LR] * hyper[hyper::MUON_DECAY];
        w.f32_mut()[..n].par_chunks_mut(CHUNK).for_each(|w| shrink(w, keep));
    }
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

    fn shrink(w: &mut [f32], keep: f32) {
        for w in w.iter_mut() {
            *w *= keep;
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
    let [g, g2, partials, out] = bufs.take();
    let n = s.n as usize;
    let rho = match s.partials {
        0 => 1.0,
        count => clip::cpu::norm(&partials.f32()[..count as usize]).sqrt() + 1e-6,
    };
    let root = rho.sqrt();
    let out = &mut out.f32_mut()[..n * n];
    combine(&g.f32()[..n * n], g2.f32(), s.b / (rho * root), s.c / (rho * rho * root), out);
    for i in 0..n {
        out[i * n + i] += s.a / root;
    }
}

pub(crate) fn scale(p: &Params, bufs: Bufs<'_>) {
    let s: Scale = p.get();
    let [hyper, clip, partials, q, out] = bufs.take();
    let out = &mut out.f32_mut()[..s.n as usize];
    if clip.f32()[2] != 0.0 {
        out.fill(0.0);
        return;
    }
    let divisor = match s.partials {
        0 => 1.0,
        n => (clip::cpu::norm(&partials.f32()[..n as usize]) + GRAM_EPS).sqrt(),
    };
    scaled(q.f32(), -(hyper.f32()[hyper::MUON_LR] * s.factor / divisor), out);
}
