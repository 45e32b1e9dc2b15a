//! CPU twin of AdamW.

use rayon::prelude::*;

use super::Shape;
use crate::kernel::{Bufs, Params};
use crate::kernels::hyper;

const CHUNK: usize = 16_384;

pub(crate) fn adamw(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [hyper, clip, g, w, m, v] = bufs.take();
    let (hyper, clip, n) = (hyper.f32(), clip.f32(), s.n as usize);
    if clip[2] != 0.0 {
        return;
    }
    let state =
        w.f32_mut()[..n].par_chunks_mut(CHUNK).zip(m.f32_mut()[..n].par_chunks_mut(CHUNK)).zip(v.f32_mut()[..n].par_chunks_mut(CHUNK));
    state.zip(g.f32().par_chunks(CHUNK)).for_each(|(((w, m), v), g)| step(hyper, clip[1], s.decay, g, w, m, v));
}

crate::simd! {
    fn step(hyper: &[f32], factor: f32, decay: f32, g: &[f32], w: &mut [f32], m: &mut [f32], v: &mut [f32]) {
        let (lr, b1, b2, eps) = (hyper[hyper::LR], hyper[hyper::BETA1], hyper[hyper::BETA2], hyper[hyper::EPS]);
        let keep = 1.0 - lr * hyper[hyper::WEIGHT_DECAY] * decay;
        let (bias1, bias2) = (hyper[hyper::BIAS1], hyper[hyper::BIAS2]);
        for (((w, m), v), g) in w.iter_mut().zip(m).zip(v).zip(g) {
            let g = g * factor;
            *m = b1.mul_add(*m, (1.0 - b1) * g);
            *v = b2.mul_add(*v, (1.0 - b2) * g * g);
            *w = *w * keep - lr * (*m / bias1) / ((*v / bias2).sqrt() + eps);
        }
    }
}
