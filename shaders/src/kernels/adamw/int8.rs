//! CPU twin of AdamW with moments of one byte.

use rayon::prelude::*;

use super::{BLOCK, Shape};
use crate::kernel::{Bufs, Params};
use crate::kernels::hyper;

/// Blocks that one task takes.
const TOGETHER: usize = 64;
/// Adding it rounds to an integer in the low bits.
const MAGIC: f32 = 12_582_912.0;

pub(crate) fn adamw_int8(p: &Params, bufs: Bufs<'_>) {
    let s: Shape = p.get();
    let [hyper, clip, g, w, m, v, scales] = bufs.take();
    let (hyper, clip, n) = (hyper.f32(), clip.f32(), s.n as usize);
    if clip[2] != 0.0 {
        return;
    }
    let m: &mut [u8] = bytemuck::cast_slice_mut(m.u32_mut());
    let v: &mut [u8] = bytemuck::cast_slice_mut(v.u32_mut());
    let (elements, of_scales) = (TOGETHER * BLOCK, 2 * TOGETHER);
    let moments = m.par_chunks_mut(elements).zip(v.par_chunks_mut(elements)).zip(scales.f32_mut().par_chunks_mut(of_scales));
    let tasks = w.f32_mut()[..n].par_chunks_mut(elements).zip(g.f32()[..n].par_chunks(elements)).zip(moments);
    tasks.for_each(|((w, g), ((m, v), scales))| {
        for (((w, g), (m, v)), scales) in w
            .chunks_mut(BLOCK)
            .zip(g.chunks(BLOCK))
            .zip(m.chunks_exact_mut(BLOCK).zip(v.chunks_exact_mut(BLOCK)))
            .zip(scales.chunks_exact_mut(2))
        {
            let mut new = [[0f32; BLOCK]; 2];
            let tops = step(hyper, clip[1], s.decay, (scales[0], scales[1]), g, w, m, v, &mut new);
            encode(tops, &new, m, v);
            (scales[0], scales[1]) = tops;
        }
    });
}

crate::simd! {
    /// Takes a step; the moments that follow go into `new`, their largest ones are the result.
    fn step(hyper: &[f32], factor: f32, decay: f32, scales: (f32, f32), g: &[f32], w: &mut [f32], m: &[u8], v: &[u8], new: &mut [[f32; BLOCK]; 2]) -> (f32, f32) {
        let (lr, b1, b2, eps) = (hyper[hyper::LR], hyper[hyper::BETA1], hyper[hyper::BETA2], hyper[hyper::EPS]);
        let keep = 1.0 - lr * hyper[hyper::WEIGHT_DECAY] * decay;
        let (bias1, bias2) = (hyper[hyper::BIAS1], hyper[hyper::BIAS2]);
        let [m_new, v_new] = new;
        for ((m_new, v_new), (m, v)) in m_new.iter_mut().zip(v_new.iter_mut()).zip(m.iter().zip(v)) {
            let root = f32::from(*m & 127) * (1.0 / 127.0);
            let value = root * root * scales.0;
            *m_new = if *m > 127 { -value } else { value };
            let root = f32::from(*v) * (1.0 / 255.0);
            let square = root * root;
            *v_new = square * square * scales.1;
        }
        for (((w, m), v), g) in w.iter_mut().zip(m_new.iter_mut()).zip(v_new.iter_mut()).zip(g) {
            let g = g * factor;
            *m = b1.mul_add(*m, (1.0 - b1) * g);
            *v = b2.mul_add(*v, (1.0 - b2) * g * g);
            *w = *w * keep - lr * (*m / bias1) / ((*v / bias2).sqrt() + eps);
        }
        // Past the last element there is nothing to remember.
        m_new[g.len()..].fill(0.0);
        v_new[g.len()..].fill(0.0);
        let mut tops = [[0f32; 16]; 2];
        for (m, v) in m_new.as_chunks::<16>().0.iter().zip(v_new.as_chunks::<16>().0) {
            for i in 0..16 {
                let a = m[i].abs();
                tops[0][i] = if a > tops[0][i] { a } else { tops[0][i] };
                tops[1][i] = if v[i] > tops[1][i] { v[i] } else { tops[1][i] };
            }
        }
        let top = |t: [f32; 16]| t.into_iter().fold(0f32, |a, b| if b > a { b } else { a });
        (top(tops[0]), top(tops[1]))
    }

    fn encode(tops: (f32, f32), new: &[[f32; BLOCK]; 2], m: &mut [u8], v: &mut [u8]) {
        let inverse = |top: f32| if top > 0.0 { 1.0 / top } else { 0.0 };
        let (m_inverse, v_inverse) = (inverse(tops.0), inverse(tops.1));
        // Rounded to the nearest, ties to even; the last step may pass the largest code by a rounding.
        let code = |x: f32, most: f32| {
            let x = if x > most { most } else { x };
            ((x + MAGIC).to_bits() & 0xff) as u8
        };
        let [m_new, v_new] = new;
        for (((m, v), m_new), v_new) in m.iter_mut().zip(v.iter_mut()).zip(m_new).zip(v_new) {
            let sign = if *m_new < 0.0 { 128 } else { 0 };
            *m = code((m_new.abs() * m_inverse).sqrt() * 127.0, 127.0) | sign;
            let c = code((v_new * v_inverse).sqrt().sqrt() * 255.0, 255.0);
            *v = if c == 0 && *v_new > 0.0 { 1 } else { c };
        }
    }
}
